//! A small generator (SplitMix64) expanded from a seed the shell draws from the kernel. It spreads retries and makes lock values
//! unique; it is no secret keeper.

use super::lease::Value;
use std::time::Duration;

/// What one election is seeded with. Two elections must never share a seed: their lock values would collide.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Seed(pub u128);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rng {
    high: u64,
    low: u64,
}

impl Rng {
    pub fn new(seed: Seed) -> Self {
        Rng { high: (seed.0 >> 64) as u64, low: seed.0 as u64 }
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A fresh lock value: both halves of the seed run, so 128 bits of it decide.
    pub fn value(&mut self) -> Value {
        let high = Self::next(&mut self.high);
        let low = Self::next(&mut self.low);
        Value(u128::from(high) << 64 | u128::from(low))
    }

    /// Uniform in `[0, span)`, to the microsecond; zero for a zero span.
    pub fn below(&mut self, span: Duration) -> Duration {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        if span_us == 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(Self::next(&mut self.low) % span_us)
    }
}
