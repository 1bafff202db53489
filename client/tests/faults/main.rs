//! What goes wrong, with the three real programs on loopback: trainers, packages, invites, disks, an evil server, secrets.
//!
//! `stack` is the vocabulary; each other module is one kind of fault. Run by `scripts/test`, which builds the programs and the
//! Python environment first.

mod stack;

mod admission;
mod disk;
mod evil_server;
mod packages;
mod proxy;
mod secrets;
mod trainers;
mod versions;
