//! The pure core: who may run a keeper, and until when.
//!
//! Nothing here reads a clock, opens a socket, starts a task or draws a random number; time, answers and seeds come in as values,
//! actions and events go out as values. The linter enforces it with the lists in `.clippy.toml`, and `tests/core_is_pure.rs` checks
//! that no other module of the crate is named here.
#![deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)]

pub mod backoff;
pub mod election;
pub mod event;
pub mod lease;
pub mod preference;
pub mod request;
pub mod restart;
pub mod rng;
pub mod round;
pub mod spread;
pub mod time;
pub mod timing;
