//! The core by scenarios: each test is a sentence about an election.

mod child;
mod election;
mod extension;
mod standby;
mod timing;
mod world;
