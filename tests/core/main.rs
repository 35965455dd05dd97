//! The core by scenarios: each test is a sentence about an election.

// Tests pick one variant out of many; production code may not.
#![allow(clippy::wildcard_enum_match_arm)]

mod child;
mod election;
mod extension;
mod found;
mod health;
mod pause;
mod preference;
mod random;
mod standby;
mod timing;
mod world;
