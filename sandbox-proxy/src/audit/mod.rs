//! Records of what happened at the border, on their way to whoever keeps or watches them.

mod denials;
pub(crate) mod hub;
mod lines;
pub(crate) mod record;
mod text;

pub(crate) use hub::Hub;
pub use lines::JsonLines;
