//! Probes, on the edge thread: is the child ready, is it healthy, is this host fit to stand.
//!
//! What is probed comes from the core, and so does every decision; from here goes only what the probes have come to. A slow or hung
//! probe delays its own keeper's next one and nothing else.

mod ask;
mod subject;

pub use subject::{Link, Subject};

use crate::config::{Health, KeeperConfig, Probe};
use crate::core::election::{HealthReport, ProbeNumber, Probed};
use crate::guard::ChildSpec;
use crate::output::Outlet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// Probes of all keepers under way at once; more wait, which is no failure.
const PROBES_MAX: usize = 16;
/// Reports that may wait for the core thread; the edge may wait for it, never the other way round.
const REPORTS: usize = 4;
/// How often silence is looked at: a tenth of what is allowed, within these.
const LISTEN_MIN: Duration = Duration::from_millis(20);
const LISTEN_MAX: Duration = Duration::from_secs(1);

/// All probes of one keeper.
#[derive(Debug)]
pub struct Watch {
    name: Arc<str>,
    ready: Option<Probe>,
    health: Option<Health>,
    /// Whose identity and environment a command gets.
    child: Result<ChildSpec, String>,
    outlet: Arc<Outlet>,
    subject: Arc<Subject>,
    reports: mpsc::Sender<HealthReport>,
    places: Arc<Semaphore>,
}

/// Shared by all watches of a daemon.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Places(Arc::new(Semaphore::new(PROBES_MAX)))
    }
}

/// When the first probe is due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    AtOnce,
    AfterInterval,
}

impl Watch {
    /// The edge's end and the core's, for a keeper that has probes.
    pub fn new(
        keeper: &KeeperConfig,
        child: &Result<ChildSpec, String>,
        outlet: &Arc<Outlet>,
        places: &Places,
    ) -> Option<(Watch, Link)> {
        if keeper.health.is_none() && keeper.ready.is_none() {
            return None;
        }
        let subject = Arc::new(Subject::default());
        let (sender, reports) = mpsc::channel(REPORTS);
        let watch = Watch {
            name: keeper.name.as_str().into(),
            ready: keeper.ready.clone(),
            health: keeper.health.clone(),
            child: child.clone(),
            outlet: Arc::clone(outlet),
            subject: Arc::clone(&subject),
            reports: sender,
            places: Arc::clone(&places.0),
        };
        Some((watch, Link { subject, reports }))
    }

    /// Probes for as long as the core thread has the other end.
    pub async fn run(self) {
        let mut probed = Probed::Nothing;
        loop {
            probed = tokio::select! {
                () = self.reports.closed() => return,
                // A probe under way about something that is over is dropped, and killed.
                changed = self.subject.other_than(probed) => changed,
                () = self.probe(probed) => std::future::pending().await,
            };
        }
    }

    async fn probe(&self, probed: Probed) {
        match (probed, &self.health) {
            (Probed::Nothing, _) | (Probed::Host(_), None | Some(Health::MaxSilence(_))) => {}
            (Probed::Host(number), Some(Health::Probe { probe, .. })) => self.probe_host(number, probe).await,
            (Probed::Child(number), health) => {
                if let Some(ready) = &self.ready {
                    self.until_ready(number, ready).await;
                }
                match health {
                    Some(Health::Probe { probe, .. }) => self.probe_child(number, probe).await,
                    Some(Health::MaxSilence(most)) => self.listen(number, *most).await,
                    None => {}
                }
            }
        }
        std::future::pending().await
    }

    async fn probe_host(&self, of: ProbeNumber, probe: &Probe) {
        let mut row = Row::new("health", probe, First::AtOnce);
        let mut told = None;
        loop {
            let answer = row.ask(self).await;
            // What is not known yet is told at once; a fit host may fail as often as a child may.
            let failing = answer.err().filter(|_| row.is_full() || told != Some(true));
            let fit = failing.is_none();
            if told != Some(fit) {
                told = Some(fit);
                self.report(of, failing).await;
            }
        }
    }

    async fn until_ready(&self, of: ProbeNumber, probe: &Probe) {
        let mut row = Row::new("ready", probe, First::AfterInterval);
        while let Err(why) = row.ask(self).await {
            if row.is_full() {
                self.report(of, Some(why)).await;
            }
        }
        tracing::info!(keeper = &*self.name, "child is ready");
    }

    async fn probe_child(&self, of: ProbeNumber, probe: &Probe) {
        let mut row = Row::new("health", probe, First::AfterInterval);
        loop {
            if let Err(why) = row.ask(self).await
                && row.is_full()
            {
                self.report(of, Some(why)).await;
            }
        }
    }

    /// Silence is counted by a clock that stands still in suspend, as the child does.
    async fn listen(&self, of: ProbeNumber, most: Duration) {
        let look_every = (most / 10).clamp(LISTEN_MIN, LISTEN_MAX);
        let mut heard = self.outlet.last_write.latest();
        let mut since = Instant::now();
        let mut overdue = false;
        loop {
            tokio::time::sleep(look_every).await;
            let latest = self.outlet.last_write.latest();
            if latest != heard {
                (heard, since, overdue) = (latest, Instant::now(), false);
            } else if since.elapsed() < most {
                overdue = false;
            } else if overdue {
                self.report(of, Some(format!("health: no output for {most:?}"))).await;
            } else {
                // A daemon that was held up itself has the child's words still to read.
                overdue = true;
            }
        }
    }

    async fn report(&self, of: ProbeNumber, failing: Option<String>) {
        // The core thread is gone only at the end.
        let _ = self.reports.send(HealthReport { of, failing }).await;
    }
}

/// One probe, again and again, and how often it has failed in a row.
struct Row<'a> {
    what: &'static str,
    probe: &'a Probe,
    next: Instant,
    failed: u32,
}

impl<'a> Row<'a> {
    fn new(what: &'static str, probe: &'a Probe, first: First) -> Self {
        let pause = if first == First::AtOnce { Duration::ZERO } else { probe.interval };
        Row { what, probe, next: Instant::now() + pause, failed: 0 }
    }

    fn is_full(&self) -> bool {
        self.failed >= self.probe.failures
    }

    /// Waits until the next is due, and asks.
    async fn ask(&mut self, watch: &Watch) -> Result<(), String> {
        tokio::time::sleep_until(self.next).await;
        let place = Arc::clone(&watch.places).acquire_owned().await.map_err(|error| error.to_string())?;
        self.next = Instant::now() + self.probe.interval;
        let Probe { question, timeout, failures, .. } = self.probe;
        let (what, keeper) = (self.what, &*watch.name);
        match ask::ask(question, *timeout, &watch.child, place).await {
            Ok(()) => {
                self.failed = 0;
                Ok(())
            }
            Err(why) => {
                self.failed = self.failed.saturating_add(1);
                let failed = self.failed;
                if failed <= *failures {
                    tracing::info!(keeper, failed, of = failures, "{what} probe failed: {question}: {why}");
                }
                let times = if failed > 1 { format!(" ({failed} times in a row)") } else { String::new() };
                Err(format!("{what}: {question}: {why}{times}"))
            }
        }
    }
}
