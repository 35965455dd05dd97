//! Commands other than the daemon.
