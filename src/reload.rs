//! A new configuration for the daemon that runs: read and checked whole, compared, and put in force for the keepers that differ.
//!
//! ```text
//! SIGHUP, POST /v1/reload ─► Fleet ─ a blocking thread: files, users ─► Plan ─► Revision ─► core thread
//!                              one at a time; a stop does not wait for it        roster: retires, enlists
//! ```

use crate::clock;
use crate::config::{self, Config, ConfigErrors, Difference, Env, KeeperConfig, LockConfig};
use crate::core_thread::Order;
use crate::guard::ChildSpec;
use crate::keeper::first_view;
use crate::observe::board::{Board, Panel, Reload};
use crate::observe::series::Series;
use crate::outfit::{Inheritance, Outfitter, Post};
use crate::output::Outlet;
use crate::roster::{Enlistment, Revision};
use crate::systemd;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// A user database may come late, and an account may be made while keeperd runs: keepers that wait for one are looked at this often.
const ACCOUNTS_AGAIN: Duration = Duration::from_secs(10);
/// Mistakes that are logged one by one; `keeperd check` shows all of them.
const LOGGED_MAX: usize = 20;

/// Where the configuration comes from.
#[derive(Debug)]
pub struct Origin {
    pub path: PathBuf,
    /// As it was when the daemon started: a process cannot be given another.
    pub env: Env,
}

/// Somebody waits to hear what the file changes.
#[derive(Debug)]
pub struct Request {
    /// Only say it.
    pub dry_run: bool,
    pub answer: oneshot::Sender<Result<Report, Refused>>,
}

/// What a reload changes, as the control socket says it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub file: String,
    pub dry_run: bool,
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<Changed>,
    pub unchanged: usize,
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Changed {
    pub name: String,
    /// As the file names them.
    pub keys: Vec<String>,
}

/// Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the configuration has mistakes, and the daemon goes on with the one it has")]
    Mistakes(ConfigErrors),
    #[error("{file} changes what needs a restart of keeperd: {}; nothing was reloaded", keys.join(", "))]
    Fixed { file: String, keys: Vec<&'static str> },
    #[error("keeperd is ending")]
    Ending,
    #[error("a file for the output of a keeper cannot be had: {0}; nothing was reloaded")]
    Output(#[from] io::Error),
}

impl Refused {
    /// One line for each mistake.
    pub fn mistakes(&self) -> Vec<String> {
        match self {
            Refused::Mistakes(errors) => errors.0.iter().map(ToString::to_string).collect(),
            Refused::Fixed { file, keys } => {
                keys.iter().map(|key| format!("{file}: {key} cannot change while keeperd runs")).collect()
            }
            Refused::Ending | Refused::Output(_) => Vec::new(),
        }
    }
}

/// A configuration that can be put in force, and what that takes.
#[derive(Debug)]
struct Plan {
    config: Config,
    difference: Difference,
    /// Of those that begin: added, changed.
    children: BTreeMap<String, Result<ChildSpec, String>>,
}

impl Plan {
    fn read(
        origin: &Origin,
        in_force: &Config,
        unfit: &BTreeSet<String>,
        inheritance: &Inheritance,
    ) -> Result<Plan, Refused> {
        let config = config::load(&origin.path, &origin.env).map_err(Refused::Mistakes)?;
        let keys = config::fixed_keys(in_force, &config);
        if !keys.is_empty() {
            return Err(Refused::Fixed { file: origin.path.display().to_string(), keys });
        }
        Ok(Plan::new(config, in_force, unfit, inheritance))
    }

    /// Users are looked up anew where something differs, and where one was missing: it may have been made since.
    fn new(config: Config, in_force: &Config, unfit: &BTreeSet<String>, inheritance: &Inheritance) -> Plan {
        let mut difference = Difference::of(in_force, &config);
        let begin: BTreeSet<&str> = difference
            .added
            .iter()
            .chain(difference.changed.iter().map(|(name, _)| name))
            .map(String::as_str)
            .collect();
        let (begin, same): (Vec<_>, Vec<_>) =
            config.keepers.iter().partition(|keeper| begin.contains(&*keeper.name));
        let mut children: BTreeMap<_, _> =
            begin.into_iter().map(|keeper| (keeper.name.clone(), inheritance.prepare(keeper))).collect();
        for keeper in same.into_iter().filter(|keeper| unfit.contains(&keeper.name)) {
            if let Ok(child) = inheritance.prepare(keeper) {
                difference.unchanged -= 1;
                difference.changed.push((keeper.name.clone(), account_keys(keeper)));
                children.insert(keeper.name.clone(), Ok(child));
            }
        }
        Plan { config, difference, children }
    }

    fn report(&self, origin: &Origin, dry_run: bool) -> Report {
        let Difference { added, removed, changed, unchanged } = self.difference.clone();
        let named = |(name, keys): (String, Vec<&str>)| Changed {
            name,
            keys: keys.into_iter().map(ToOwned::to_owned).collect(),
        };
        Report {
            file: origin.path.display().to_string(),
            dry_run,
            added,
            removed,
            changed: changed.into_iter().map(named).collect(),
            unchanged,
            warnings: self.config.warnings.clone(),
        }
    }
}

fn account_keys(keeper: &KeeperConfig) -> Vec<&'static str> {
    let process = &keeper.process;
    let given = [
        ("user", process.user.is_some()),
        ("group", process.group.is_some()),
        ("groups", process.groups.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect()
}

/// The configuration in force, and the edge's side of every keeper.
#[derive(Debug)]
pub struct Fleet {
    origin: Arc<Origin>,
    inheritance: Arc<Inheritance>,
    outfitter: Outfitter,
    board: Arc<Board>,
    config: Arc<Config>,
    posts: BTreeMap<String, Post>,
}

impl Fleet {
    /// All keepers of the configuration, ready for the core thread. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When no thread for a file of a keeper's output can be started.
    pub fn muster(
        origin: Origin,
        config: Config,
        outfitter: Outfitter,
        board: Arc<Board>,
    ) -> io::Result<(Fleet, Vec<Enlistment>)> {
        let inheritance = Arc::new(Inheritance::of_this_process());
        let nothing = Config { keepers: Vec::new(), ..config.clone() };
        let plan = Plan::new(config, &nothing, &BTreeSet::new(), &inheritance);
        let (config, posts) = (Arc::new(nothing), BTreeMap::new());
        let mut fleet = Fleet { origin: Arc::new(origin), inheritance, outfitter, board, config, posts };
        let revision = fleet.revise(plan, "keeperd has started")?;
        Ok((fleet, revision.enlist))
    }

    /// Reloads at every request and signal, one at a time, for as long as the daemon runs.
    pub async fn serve(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        hangup: Arc<Notify>,
        orders: mpsc::Sender<Order>,
        ending: Arc<AtomicBool>,
    ) {
        loop {
            tokio::select! {
                // What it comes to is in the log.
                () = hangup.notified() => drop(self.reload(&orders, &ending).await),
                () = tokio::time::sleep(ACCOUNTS_AGAIN), if !self.unfit().is_empty() => {
                    self.look_up_again(&orders, &ending).await;
                }
                Some(Request { dry_run, answer }) = requests.recv() => {
                    let outcome = if dry_run {
                        self.plan().await.map(|plan| plan.report(&self.origin, dry_run))
                    } else {
                        self.reload(&orders, &ending).await
                    };
                    // Who asked may have gone.
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    /// Whose user or group this host does not know.
    fn unfit(&self) -> BTreeSet<String> {
        self.posts.iter().filter(|(_, post)| post.unfit).map(|(name, _)| name.clone()).collect()
    }

    /// The configuration in force, with the accounts that there are now.
    async fn look_up_again(&mut self, orders: &mpsc::Sender<Order>, ending: &AtomicBool) {
        let (unfit, inheritance) = (self.unfit(), Arc::clone(&self.inheritance));
        let in_force = Arc::clone(&self.config);
        let look = move || Plan::new(Config::clone(&in_force), &in_force, &unfit, &inheritance);
        let Ok(plan) = tokio::task::spawn_blocking(look).await else { return };
        if plan.children.is_empty() {
            return;
        }
        let known: Vec<String> = plan.children.keys().cloned().collect();
        match self.put_in_force(plan, orders, ending).await {
            Ok(_) => {
                for keeper in known {
                    tracing::info!(
                        keeper,
                        "its user and groups are known on this host now: it stands for it"
                    );
                }
            }
            Err(refused) => log_refusal(&refused),
        }
    }

    /// Files and users may be a network away: read on a thread of its own.
    async fn plan(&self) -> Result<Plan, Refused> {
        let unfit = self.unfit();
        let (origin, inheritance) = (Arc::clone(&self.origin), Arc::clone(&self.inheritance));
        let in_force = Arc::clone(&self.config);
        let read = move || Plan::read(&origin, &in_force, &unfit, &inheritance);
        tokio::task::spawn_blocking(read).await.unwrap_or(Err(Refused::Ending))
    }

    async fn reload(&mut self, orders: &mpsc::Sender<Order>, ending: &AtomicBool) -> Result<Report, Refused> {
        if ending.load(Ordering::Relaxed) {
            return Err(Refused::Ending);
        }
        systemd::reloading();
        let outcome = match self.plan().await {
            Ok(plan) => self.put_in_force(plan, orders, ending).await,
            Err(refused) => Err(refused),
        };
        match &outcome {
            Ok(report) => log(report),
            Err(Refused::Ending) => return outcome,
            Err(refused) => log_refusal(refused),
        }
        self.board.put_reload(Reload { at: clock::wall(), ok: outcome.is_ok() });
        // No await since: nothing can have said that keeperd is stopping, which is the last word.
        if !ending.load(Ordering::Relaxed) {
            systemd::ready();
        }
        outcome
    }

    async fn put_in_force(
        &mut self,
        plan: Plan,
        orders: &mpsc::Sender<Order>,
        ending: &AtomicBool,
    ) -> Result<Report, Refused> {
        let Ok(place) = orders.reserve().await else { return Err(Refused::Ending) };
        if ending.load(Ordering::Relaxed) {
            return Err(Refused::Ending);
        }
        let mut report = plan.report(&self.origin, false);
        report.warnings.retain(|warning| !self.config.warnings.contains(warning));
        place.send(Order::Reload(Box::new(self.revise(plan, "it is new since a reload")?)));
        Ok(report)
    }

    /// `why` there are keepers that were not there before.
    fn revise(&mut self, plan: Plan, why: &'static str) -> io::Result<Revision> {
        let Plan { config, difference, mut children } = plan;
        let config = Arc::new(config);
        let in_force = std::mem::replace(&mut self.config, Arc::clone(&config));
        let before: BTreeMap<&str, &KeeperConfig> =
            in_force.keepers.iter().map(|keeper| (&*keeper.name, keeper)).collect();
        let mut begin = Vec::new();
        for keeper in config.keepers.iter().filter(|keeper| children.contains_key(&keeper.name)) {
            let earlier = self.posts.get(&keeper.name).zip(before.get(&*keeper.name).copied());
            match self.outfitter.outlet(keeper, earlier) {
                Ok(outlet) => begin.push((keeper, outlet)),
                Err(error) => {
                    self.config = in_force;
                    return Err(error);
                }
            }
        }
        let ends = difference.removed.iter().chain(difference.changed.iter().map(|(name, _)| name));
        let retire = ends.map(|name| name.as_str().into()).collect();
        for name in &difference.removed {
            self.posts.remove(name);
        }
        let mut enlist = Vec::new();
        for (keeper, outlet) in begin {
            let child = children.remove(&keeper.name).unwrap_or_else(|| Err("not prepared".to_owned()));
            if let Err(why) = &child {
                let keeper = &keeper.name;
                tracing::warn!(keeper, why, "this host cannot run it and hands over what it wins");
            }
            let earlier = self.posts.remove(&keeper.name);
            let panel = self.panel(keeper, &outlet, why);
            let parts = (outlet, panel);
            let lock_key = config.lock_key(keeper);
            let (post, enlistment) =
                self.outfitter.outfit(keeper.clone(), lock_key, child, parts, earlier, why);
            self.posts.insert(keeper.name.clone(), post);
            enlist.push(enlistment);
        }
        let shown = config.keepers.iter().filter_map(|keeper| self.posts.get(&keeper.name));
        self.board.arrange(shown.map(|post| Arc::clone(&post.panel)).collect());
        let restart_quarantine = match &config.lock {
            LockConfig::Redis(redis) => Some(redis.restart_quarantine),
            LockConfig::Local(_) => None,
        };
        Ok(Revision { retire, enlist, restart_quarantine })
    }

    /// One that was removed may not have ended yet, and is shown until it has.
    fn panel(&self, keeper: &KeeperConfig, outlet: &Arc<Outlet>, why: &str) -> Arc<Panel> {
        self.board.panel(&outlet.name).unwrap_or_else(|| {
            let view = first_view(&keeper.name, keeper.timing, clock::wall(), why);
            Panel::new(view, Arc::clone(outlet), Series::new(keeper.process.stop_signal))
        })
    }
}

fn log(report: &Report) {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    for keeper in &report.added {
        tracing::info!(keeper, "added by the reload");
    }
    for keeper in &report.removed {
        tracing::info!(keeper, "removed by the reload: it is handed over and then forgotten");
    }
    for Changed { name, keys } in &report.changed {
        let keys = keys.join(", ");
        tracing::info!(keeper = name, keys, "changed by the reload: it is handed over, and stood for anew");
    }
    let Report { added, removed, changed, unchanged, .. } = report;
    let (added, removed, changed) = (added.len(), removed.len(), changed.len());
    tracing::info!(added, removed, changed, unchanged, "configuration reloaded");
}

fn log_refusal(refused: &Refused) {
    let mistakes = refused.mistakes();
    for mistake in mistakes.iter().take(LOGGED_MAX) {
        tracing::error!("{mistake}");
    }
    if let Some(more @ 1..) = mistakes.len().checked_sub(LOGGED_MAX) {
        tracing::error!("and {more} more: keeperd check shows all of them");
    }
    tracing::error!("reload refused: {refused}");
}
