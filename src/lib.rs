//! Run AI coding agents in microVMs that hold no secrets.
