//! Follows the probes' log while a trial runs.

use crate::checker::{Event, Fault, Judge, Life, Record, Violation, parse_record};
use crate::step::Step;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

#[derive(Debug)]
pub struct Witness {
    pub path: PathBuf,
    read_to: u64,
    unfinished: Vec<u8>,
    records: Vec<Record>,
    malformed: Vec<Violation>,
    pub judge: Judge,
    /// A long trial keeps only the youngest records.
    pub keep_max: Option<usize>,
}

impl Witness {
    pub fn of(path: PathBuf) -> Self {
        Self {
            path,
            read_to: 0,
            unfinished: Vec::new(),
            records: Vec::new(),
            malformed: Vec::new(),
            judge: Judge::default(),
            keep_max: None,
        }
    }

    /// Reads what is new.
    pub fn look(&mut self) -> Step {
        let Ok(mut log) = File::open(&self.path) else { return Ok(()) };
        log.seek(SeekFrom::Start(self.read_to))?;
        let mut new = Vec::new();
        self.read_to += log.read_to_end(&mut new)? as u64;
        self.unfinished.extend(new);
        let Some(end) = self.unfinished.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let complete: Vec<u8> = self.unfinished.drain(..=end).collect();
        for line in String::from_utf8_lossy(&complete).lines() {
            match parse_record(line) {
                Some(record) => {
                    self.judge.observe(&record);
                    self.records.push(record);
                }
                None => self.malformed.push(Violation {
                    fault: Fault::Malformed,
                    at: self.records.last().map_or(0, |r| r.at),
                    text: format!("not a record: {line:?}"),
                }),
            }
        }
        if let Some(max) = self.keep_max.filter(|max| self.records.len() > 2 * max) {
            self.records.drain(..self.records.len() - max);
        }
        Ok(())
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Children of a keeper in the order of their starts.
    pub fn lives(&self, keeper: &str) -> Vec<Life> {
        self.judge.lives_of(keeper)
    }

    pub fn starts(&self, keeper: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |r| r.keeper == keeper && r.event == Event::Start)
    }

    pub fn verdict(&self) -> Vec<Violation> {
        self.malformed.iter().cloned().chain(self.judge.verdict()).collect()
    }
}
