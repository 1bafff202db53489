//! `webrtc-worker`: see [`worker`].

fn main() -> std::process::ExitCode {
    worker::api::cli::main()
}
