//! The signaling server over real sockets and as a real process.

mod abuse;
mod admission;
mod contract;
mod process;
mod relay;
mod rest;
mod store;
mod support;
mod turn;
