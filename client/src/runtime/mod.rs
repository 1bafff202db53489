//! What the client does with sockets and disk.
//!
//! * [`package`]: a path that a user typed → a package that can be sent
//! * [`known_workers`]: the keys of the workers met before; [`known_speeds`]: how fast packages went to them
//! * [`doctor`]: looks at everything that a connection needs, on both sides
//! * [`remote`]: everything that needs a worker: `connect` makes links, a `conversation` uses one (with `bulk` connections), a `drive` wants something over as
//!   many as it takes; `download` puts results in place, `checkpoints` what comes before them

pub mod doctor;
pub mod known_speeds;
pub mod known_workers;
pub mod package;
pub mod remote;

mod archive;
mod bulk;
mod checkpoints;
mod connect;
mod conversation;
mod download;
mod drive;
mod labels;
