//! What the client does with sockets and disk.
//!
//! * [`package`]: a path that a user typed → a package that can be sent
//! * [`known_workers`]: the keys of the workers met before
//! * [`remote`]: everything that needs a worker

pub mod known_workers;
pub mod package;
pub mod remote;

mod archive;
mod labels;
