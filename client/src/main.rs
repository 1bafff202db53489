//! `webrtc-client`.

use std::process::ExitCode;

fn main() -> ExitCode {
    client::api::main(std::env::args_os())
}
