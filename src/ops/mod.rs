//! Commands other than the daemon.

pub mod check;
pub mod client;
pub mod completions;
pub mod doctor;
pub mod everywhere;
pub mod hand;
pub mod locks;
pub mod logs;
pub mod man;
pub mod reload;
pub mod run;
pub mod socket;
pub mod status;
pub mod steer;
pub mod terminal;
pub mod unlock;
pub mod view;

/// The exit code of a command that only prints.
pub fn printed(written: std::io::Result<()>) -> i32 {
    client::finish(written.map(|()| 0).map_err(Into::into))
}
