//! keeperd: a leader-elected process supervisor.

pub mod child;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod core_thread;
pub mod daemon;
pub mod guard;
pub mod keeper;
pub mod lock;
pub mod observe;
pub mod ops;
pub mod output;
pub mod systemd;
