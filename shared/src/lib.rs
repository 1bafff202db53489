//! What webRTC-connect's three programs share, and how they fit together.
//!
//! ```text
//!        client                     signaling-server                    worker
//!  ┌───────────────┐               ┌───────────────┐               ┌───────────────┐
//!  │ api           │               │ api           │               │ api           │   what people and peers touch
//!  │ runtime       │◄─ websocket ─►│ runtime       │◄─ websocket ─►│ runtime       │   tasks, sockets, disk, processes, clock
//!  │ domain        │               │ domain        │               │ domain        │   values and decisions; no I/O, no clock
//!  └───────┬───────┘               └───────┬───────┘               └───────┬───────┘
//!          └─────────────── shared: domain (always) + runtime (feature) ───┘
//!              client ◄══════ WebRTC data channels (shared::runtime) ══════► worker ◄─ journal ─ runner ◄─ ZMQ ─ trainer
//! ```
//!
//! Calls go down (api → runtime → domain), values come up. `clippy.toml` and the walls test (`worker/tests/walls.rs`) keep it so.
//!
//! * [`domain`]: values and decisions. No I/O, no clock, no randomness: what it needs of those it is handed.
//! * `runtime` (features `process` and `runtime`): what every program does with sockets, disk and signals.
//!
//! # A job, from invite to model
//!
//! 1. The worker opens a room and prints an invite ([`domain::invite`]): admission for the server, a secret and a key that the server never
//!    sees.
//! 2. The client registers in the room ([`domain::signal`]) and sends a sealed offer; both sides prove themselves on channel 0 of the
//!    connection before any other byte (`runtime::link`, `runtime::seal`).
//! 3. It submits a job ([`domain::job`]), whose id is its content, and announces the package ([`domain::manifest`]); the worker says which
//!    chunks it lacks; only those travel, over bulk connections, and are acknowledged once they are on disk ([`domain::transfer`],
//!    `runtime::transfer`, `runtime::files`, `runtime::store`).
//! 4. The worker queues the job and gives it to a runner, a process of its own, which writes everything that happens into a journal with a
//!    sequence number. Viewers ask for it from a number on ([`domain::message`]) and get every entry once, in order.
//! 5. Each new best checkpoint is copied by the runner and journaled; a client that follows asks for the newest one.
//! 6. The results come back as a package came: a manifest, and what is missing of it.
//!
//! A connection is disposable. What a new one repeats is safe to repeat: ids are content or carried along, the journal has cursors, and a
//! transfer sends only what is missing.

pub mod domain;

#[cfg(feature = "process")]
pub mod runtime;
