//! Fuzz entry points on stable Rust: bytes in, a panic out. `cargo test` replays the corpus and then mutates it for a moment, from a
//! fixed seed; longer, and from a fresh seed, as tests/README.md says. What reaches something new is kept while it runs.
//!
//! The decoder of replies is private: its entry point and its part of the corpus are replayed by `lock::redis::reply`'s own tests.

#![allow(clippy::wildcard_enum_match_arm)]

#[path = "../properties/load.rs"]
mod load;
#[path = "../model/node.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod node;
#[path = "../properties/oracle.rs"]
#[allow(dead_code, reason = "the properties use more of it")]
mod oracle;
#[path = "../model/variant.rs"]
#[allow(dead_code, reason = "the model uses more of it")]
mod variant;

use keeperd::config::Env;
use keeperd::core::rng::{Rng, Seed};
use oracle::{Driver, Nodes};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What an input reached; new ones make it worth keeping.
type Features = BTreeSet<u32>;

/// Text of a configuration file.
fn config(bytes: &[u8]) -> Features {
    let text = String::from_utf8_lossy(bytes);
    match load::load(&text, &Env::default()) {
        Ok(config) => [u32::try_from(config.warnings.len()).expect("few")].into(),
        // The words of the complaints stand for the code that was reached; names and numbers of the file do not.
        Err(errors) => errors.split_whitespace().map(|word| 16 + hash(word.bytes()) % 512).collect(),
    }
}

fn hash(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Two bytes of setting, then four for each input of an election.
fn election(bytes: &[u8]) -> Features {
    let [who, shape, inputs @ ..] = bytes else { return Features::new() };
    let nodes = if who % 2 == 0 { Nodes::Behaving } else { Nodes::Absurd };
    let mut driver = Driver::new(nodes, *shape);
    for input in inputs.as_chunks::<4>().0 {
        driver.feed((input[0], input[1], u16::from_le_bytes([input[2], input[3]])));
    }
    driver.features
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder(target)).expect("the corpus");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("readable")).collect()
}

struct Mutator(Rng);

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        let span = Duration::from_micros(limit.max(1) as u64);
        usize::try_from(self.0.below(span).as_micros()).expect("below a usize")
    }

    /// A few edits: overwrite, insert, remove, and a piece of another input.
    fn mutate(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 | 1 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).expect("a byte"),
                2 => bytes.insert(at, u8::try_from(self.below(256)).expect("a byte")),
                3 => drop(bytes.drain(at..(at + self.below(8)).min(bytes.len()))),
                _ => {
                    let other = &pool[self.below(pool.len())];
                    let from = self.below(other.len());
                    let piece = &other[from..(from + self.below(64)).min(other.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
        bytes.truncate(4096);
        bytes
    }
}

/// Replays the corpus, then mutates it: `FUZZ_SECONDS` long, or a fixed number of times.
fn fuzz(target: &str, entry: fn(&[u8]) -> Features) {
    let mut pool = corpus(target);
    let mut seen = Features::new();
    for bytes in &pool {
        seen.extend(entry(bytes));
    }
    let seconds =
        std::env::var("FUZZ_SECONDS").ok().map(|text| text.parse().expect("FUZZ_SECONDS is a number"));
    let seed = std::env::var("FUZZ_SEED").ok().map_or(1, |text| text.parse().expect("FUZZ_SEED is a number"));
    let (began, mut tried, mut mutator) = (Instant::now(), 0_u64, Mutator(Rng::new(Seed(seed))));
    while seconds.map_or(tried < 2_000, |seconds| began.elapsed() < Duration::from_secs(seconds)) {
        tried += 1;
        let bytes = mutator.mutate(&pool);
        let Ok(reached) = catch_unwind(AssertUnwindSafe(|| entry(&bytes))) else {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{tried}"));
            std::fs::write(&file, &bytes).expect("the target folder can be written");
            panic!("{target}: {} fails", file.display());
        };
        if !reached.is_subset(&seen) {
            seen.extend(reached);
            if std::env::var_os("FUZZ_KEEP").is_some() {
                let name = folder(target).join(format!("{:08x}", hash(bytes.iter().copied())));
                std::fs::write(name, &bytes).expect("the corpus can be written");
            }
            pool.push(bytes);
        }
    }
    println!("{target}: {tried} inputs, {} kept, {} features, seed {seed}", pool.len(), seen.len());
}

#[test]
fn configurations() {
    fuzz("config", config);
}

#[test]
fn elections() {
    fuzz("election", election);
}
