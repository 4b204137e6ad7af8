//! The proxy from outside: real sockets, real clients, real upstream servers; one test per behaviour.

mod clients;
mod interception;
mod names;
mod plain;
mod requests;
mod secrets;
mod support;
mod tunnels;
