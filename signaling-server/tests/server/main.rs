//! The signaling server over real sockets and as a real process.

mod abuse;
mod admission;
mod contract;
mod nats;
mod process;
mod relay;
mod rest;
mod several;
mod support;
mod tls;
mod turn;
