//! What people touch: the command line, and what the worker prints.

pub mod cli;
mod health;
pub mod network;
mod store;
