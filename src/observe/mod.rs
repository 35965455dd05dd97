//! What the daemon shows of itself: log, status, metrics, control socket, HTTP. All of it lives on the edge thread; the core thread only leaves
//! things where the edge finds them, and never waits.

pub mod api;
pub mod board;
pub mod events;
pub mod history;
pub mod http;
pub mod log;
pub mod metrics;
pub mod plain;
pub mod process;
pub mod series;
pub mod status;
pub mod web;
