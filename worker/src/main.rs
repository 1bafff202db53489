//! `webrtc-worker`: see [`worker`].

/// Transfers allocate some hundred thousand packets a second; this takes a tenth off their cost.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    worker::api::cli::main()
}
