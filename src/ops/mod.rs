//! Commands other than the daemon.

pub mod check;
pub mod client;
pub mod logs;
pub mod status;
pub mod steer;
