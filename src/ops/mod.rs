//! Commands other than the daemon.

pub mod check;
pub mod client;
pub mod doctor;
pub mod locks;
pub mod logs;
pub mod status;
pub mod steer;
