//! The server with AWS, which emulators play: moto as a process, dynoxide in this one, and a proxy before them that makes faults.
#![cfg(feature = "aws")]

mod cognito;
#[path = "../server/contract.rs"]
mod contract;
mod emulators;
mod faults;
mod live;
mod moto;
mod program;
mod proxy;
mod rooms;
#[path = "../server/support.rs"]
#[allow(dead_code, reason = "the tests of the server without AWS say more than these")]
mod support;
mod tools;
