//! What every program does with sockets, disk and signals.
