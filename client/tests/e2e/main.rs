//! The three real programs together: jobs from package to models, and whatever may break on the way.
//!
//! * `lab`: a server, a worker and clients with folders of their own; `program`: one of them, its events and its end
//! * `package`: what is submitted; `cable`: two network namespaces and the link between them; `wire`: a way to the server that can be cut
//! * the tests: `trainings`, `checkpoints`, `uploads`, `commands`, `queue`, `leaving`, `places`, `path`, `plan`, `sign_in`, `staying`,
//!   `several_servers`, `production`
//!
//! Trainers are Python: `WEBRTC_TEST_PYTHON` names an interpreter with test_files/requirements.txt, otherwise it is `.venv`'s.

mod balancer;
mod cable;
mod checkpoints;
mod commands;
mod doctor;
mod lab;
mod leaving;
#[allow(dead_code, reason = "the tests of the server itself use the rest")]
#[path = "../../../signaling-server/tests/aws/moto.rs"]
mod moto;
#[path = "../../../signaling-server/tests/server/nats.rs"]
#[allow(dead_code, reason = "the server's own tests need more of it")]
mod nats;
mod package;
mod path;
mod places;
mod plan;
mod production;
mod program;
mod queue;
mod several_servers;
mod sign_in;
mod staying;
mod trainings;
mod uploads;
mod wire;
