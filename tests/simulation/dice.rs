//! The only source of chance in a run: everything is drawn from the seed, in the order of events.

use crate::clock::{MS, Nanos, US};

#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed ^ 0x5DEE_CE66_D1CE_4E5B)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    pub fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("below a usize")
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Uniform in `-span..=span`.
    pub fn around(&mut self, span: i64) -> i64 {
        let span = span.unsigned_abs();
        self.between(0, 2 * span).cast_signed() - span.cast_signed()
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// Exponential with this mean, cut at ten means. Sums of doublings instead of a logarithm, whose last bit may differ
    /// between machines.
    pub fn exp(&mut self, mean: Nanos) -> Nanos {
        let bits = self.next();
        let halvings = u64::from(bits.trailing_ones()).min(14);
        let half_life = mean * 693 / 1000;
        half_life * halvings + (half_life * (bits >> 44)) / (1 << 20)
    }

    /// Log-uniform: every order of magnitude between the two is as likely as the next.
    pub fn scale(&mut self, low: Nanos, high: Nanos) -> Nanos {
        let mut span = low.max(1);
        while span < high && self.below(4) != 0 {
            span *= 2;
        }
        self.between(span / 2, span).clamp(low, high)
    }

    /// How late a process on a busy host notices something.
    pub fn lateness(&mut self) -> Nanos {
        match self.below(64) {
            0 => self.between(MS, 40 * MS),
            1..8 => self.between(100 * US, MS),
            _ => self.between(5 * US, 100 * US),
        }
    }

    /// From SIGKILL to the end of a process.
    pub fn dying(&mut self) -> Nanos {
        match self.below(32) {
            0 => self.between(2 * MS, 50 * MS),
            _ => self.between(50 * US, 2 * MS),
        }
    }
}
