//! What people touch: the command line, and what the worker prints.

pub mod cli;
pub mod network;
mod store;
