//! What scripts that know nothing of keeperd wrote about their runs.
//!
//! Each line of their common log is `PID WORD`; `start` is the first word of a run. The order of the lines is the evidence: once a run
//! has said `start`, no process of an earlier run may say anything.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Account {
    /// Of each run its lines, in the order of their starts.
    pub runs: Vec<Vec<(i32, String)>>,
}

impl Account {
    /// # Errors
    /// What is no line, and what shows two runs at once.
    pub fn parse(text: &str) -> Result<Account, String> {
        let mut account = Account::default();
        let mut run_of: BTreeMap<i32, usize> = BTreeMap::new();
        for line in text.lines() {
            let parsed = line.split_once(' ').and_then(|(pid, word)| Some((pid.parse().ok()?, word)));
            let (pid, word) = parsed.ok_or_else(|| format!("no line of a script: {line:?}"))?;
            if word == "start" {
                account.runs.push(Vec::new());
            }
            let now = account.runs.len().checked_sub(1).ok_or("a line before any start")?;
            let run = *run_of.entry(pid).or_insert(now);
            if run != now {
                return Err(format!(
                    "two at once: process {pid} of run {run} said {word:?} after run {now} had begun"
                ));
            }
            account.runs[now].push((pid, word.to_owned()));
        }
        Ok(account)
    }

    pub fn said(&self, run: usize, word: &str) -> usize {
        self.runs.get(run).map_or(0, |lines| lines.iter().filter(|(_, said)| said == word).count())
    }
}
