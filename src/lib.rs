//! keeperd: a leader-elected process supervisor.

pub mod clock;
pub mod config;
pub mod core;
pub mod guard;
pub mod lock;
pub mod observe;
pub mod ops;
