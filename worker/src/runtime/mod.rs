//! What the worker does with sockets, disk and processes.
