//! Commands other than the daemon.

pub mod check;
