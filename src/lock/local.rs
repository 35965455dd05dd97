//! The lock of one host: flock on a file per keeper. For the quick start, development and single hosts.
//!
//! The kernel keeps a flock until the *last* descriptor of that open file is closed, so daemon, guard and the child's main process
//! all hold it: the lock is free only when all three are gone, or when the daemon, having proof that the tree is dead, unlocks it
//! (review.md R4). The file must never be removed: a new file would be a new lock, so an extension compares the inode.

use super::{Ask, Claim, Identity, Inbox, KeeperId};
use crate::core::lease::{FencingToken, NodeId, Value};
use crate::core::request::{
    AcquireAnswer, Answer, ExtendAnswer, FromNode, Held, Holder, LookAnswer, NodeChange, RaiseAnswer,
    RepairAnswer, Request,
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The only node there is.
pub const NODE: NodeId = NodeId(0);
/// The kernel announces the last close just before it frees the lock, and another standby may be trying for a moment.
const TRIES: u32 = 5;
const TRY_EVERY: Duration = Duration::from_millis(1);
/// Hints that may wait for the core thread.
const NAMES_MAX: usize = 1024;
/// More than any record; the file holds one.
const RECORD_MAX: usize = 4096;

/// What the lock file says: the largest token so far, and who has or had it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    token: u64,
    value: String,
    host: String,
    pid: u32,
}

/// A keeper that has unregistered keeps its entry until the last request under way is done.
struct Entry {
    path: PathBuf,
    inbox: Inbox,
    /// Every duplicate shares its lock.
    file: RefCell<Option<File>>,
    holding: Cell<Option<Value>>,
    /// Why the file could not be used when it was last tried.
    trouble: RefCell<Option<String>>,
}

type Entries = BTreeMap<KeeperId, Rc<Entry>>;

/// The engine; lives on the core thread.
#[derive(Clone)]
pub struct Local {
    identity: Rc<Identity>,
    directory: PathBuf,
    entries: Rc<RefCell<Entries>>,
    registered: Rc<Cell<u32>>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Local {
    /// Watches `directory` for locks that become free. Needs a `LocalSet`.
    ///
    /// # Errors
    /// When the directory cannot be made or watched.
    pub fn start(directory: &Path, identity: Identity) -> io::Result<Local> {
        std::fs::create_dir_all(directory)?;
        let local = Local {
            identity: Rc::new(identity),
            directory: directory.to_owned(),
            entries: Rc::default(),
            registered: Rc::default(),
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM;
        inotify.add_watch(directory, changes)?;
        tokio::task::spawn_local(pass_hints(watch(inotify), Rc::clone(&local.entries)));
        Ok(local)
    }

    /// Registers a keeper; its only node serves from now on.
    pub fn register(&self, claim: &Claim, inbox: Inbox) -> KeeperId {
        let path = self.directory.join(format!("{}.lock", claim.key.replace('/', "_")));
        // A full inbox cannot be: it is new.
        let _ = inbox.try_send(Box::new(FromNode::Change { node: NODE, change: NodeChange::Serving }));
        let id = KeeperId(self.registered.get());
        self.registered.set(id.0 + 1);
        let entry = Entry {
            path,
            inbox,
            file: RefCell::default(),
            holding: Cell::default(),
            trouble: RefCell::default(),
        };
        self.entries.borrow_mut().insert(id, Rc::new(entry));
        id
    }

    /// Its lock file is closed, and the lock free with it, when what it has asked for is done.
    pub fn unregister(&self, keeper: KeeperId) {
        self.entries.borrow_mut().remove(&keeper);
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The first lock file that cannot be used, and why.
    pub fn trouble(&self) -> Option<String> {
        let entries = self.entries.borrow();
        entries.values().find_map(|entry| {
            let why = entry.trouble.borrow();
            Some(format!("{} cannot be used: {}", entry.path.display(), why.as_ref()?))
        })
    }

    /// A duplicate of the lock's descriptor, for the guard and the child.
    pub fn descriptor(&self, keeper: KeeperId) -> io::Result<OwnedFd> {
        let closed = || io::Error::other("the lock file is not open");
        let entries = self.entries.borrow();
        let file = entries.get(&keeper).ok_or_else(closed)?.file.borrow();
        Ok(file.as_ref().ok_or_else(closed)?.try_clone()?.into())
    }

    /// Carries a request out and answers into the keeper's inbox.
    pub fn ask(&self, keeper: KeeperId, ask: Ask) {
        let Some(entry) = self.entries.borrow().get(&keeper).cloned() else { return };
        let identity = Rc::clone(&self.identity);
        tokio::task::spawn_local(async move {
            let answer = entry.answer(&identity, &ask.request).await;
            entry.note(answer.as_ref().err());
            let answer = answer.unwrap_or(Answer::Silent);
            // The keeper has ended when its inbox is closed; a round has its own time-out when it is full.
            let answer = FromNode::Answer { node: NODE, ticket: ask.ticket, answer };
            let _ = entry.inbox.try_send(Box::new(answer));
        });
    }
}

impl Entry {
    /// One line per change, however often it is tried.
    fn note(&self, error: Option<&io::Error>) {
        let trouble = error.map(io::Error::to_string);
        if *self.trouble.borrow() == trouble {
            return;
        }
        let path = self.path.display();
        match &trouble {
            Some(error) => tracing::warn!(%path, error, "lock file cannot be used; tried again until it can"),
            None => tracing::info!(%path, "lock file can be used again"),
        }
        *self.trouble.borrow_mut() = trouble;
    }

    async fn answer(&self, identity: &Identity, request: &Request) -> io::Result<Answer> {
        Ok(match request {
            Request::Look => Answer::Look(self.look().await?),
            Request::Acquire { value, proposal, .. } => {
                Answer::Acquire(self.acquire(identity, *value, *proposal).await?)
            }
            // The one node's grant is the largest.
            Request::Raise { .. } => Answer::Raise(RaiseAnswer::Accepted),
            Request::Extend { value, .. } | Request::Check { value } => Answer::Extend(self.check(*value)),
            // What the only node lost is lost.
            Request::Repair { .. } => Answer::Repair(RepairAnswer::Refused),
            Request::Release { value } => {
                self.release(*value)?;
                Answer::Released
            }
            // There is no other host.
            Request::Bid { .. } => Answer::Noted,
        })
    }

    async fn look(&self) -> io::Result<LookAnswer> {
        match self.lock().await? {
            Ok(file) => {
                let record = read_record(&file);
                file.unlock()?;
                Ok(LookAnswer::Free { token: FencingToken(record.token) })
            }
            Err(held) => Ok(LookAnswer::Held(held)),
        }
    }

    async fn acquire(
        &self,
        identity: &Identity,
        value: Value,
        proposal: FencingToken,
    ) -> io::Result<AcquireAnswer> {
        let file = match self.lock().await? {
            Ok(file) => file,
            Err(held) => return Ok(AcquireAnswer::Held(held)),
        };
        // From here on it is ours to release, also while the disk takes its time.
        self.holding.set(Some(value));
        let token = FencingToken(read_record(&file).token).next().max(proposal);
        let record = Record {
            token: token.0,
            value: value.to_string(),
            host: identity.host.clone(),
            pid: identity.pid,
        };
        let written = write_record(&file, &record);
        // The token must be on the disk before the child has it; a slow disk must not hold up other keepers.
        let synced = match written {
            Ok(()) => {
                let copy = file.try_clone()?;
                tokio::task::spawn_blocking(move || copy.sync_data()).await.map_err(io::Error::other)?
            }
            Err(error) => Err(error),
        };
        // The attempt may have been given up meanwhile, and the lock with it.
        if self.holding.get() != Some(value) {
            return Ok(AcquireAnswer::Released);
        }
        if let Err(error) = synced {
            self.release(value)?;
            return Err(error);
        }
        Ok(AcquireAnswer::Granted { token })
    }

    fn check(&self, value: Value) -> ExtendAnswer {
        let file = self.file.borrow();
        let mine = self.holding.get() == Some(value)
            && file.as_ref().is_some_and(|file| is_same_file(file, &self.path).unwrap_or(false));
        if mine { ExtendAnswer::Ok } else { ExtendAnswer::Gone }
    }

    fn release(&self, value: Value) -> io::Result<()> {
        if self.holding.get() != Some(value) {
            return Ok(());
        }
        self.holding.set(None);
        let file = self.file.borrow();
        let Some(file) = file.as_ref() else { return Ok(()) };
        file.unlock()?;
        // Unlocking says nothing to those who wait; a new time stamp does.
        let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        let now = TimeSpec::UTIME_NOW;
        utimensat(nix::fcntl::AT_FDCWD, &path, &now, &now, UtimensatFlags::FollowSymlink)?;
        Ok(())
    }

    /// Takes the flock, or says who has it.
    async fn lock(&self) -> io::Result<Result<File, Held>> {
        let mut tried = 0;
        loop {
            let file = self.open()?;
            // Trying would succeed on our own open file, and unlocking it again would free what is being acquired.
            if self.holding.get().is_some() {
                return Ok(Err(held(&read_record(&file))));
            }
            match file.try_lock() {
                Ok(()) => {
                    if is_same_file(&file, &self.path)? {
                        return Ok(Ok(file));
                    }
                    // Somebody replaced the file: the lock we have is of the old one.
                    file.unlock()?;
                    *self.file.borrow_mut() = None;
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            tried += 1;
            if tried >= TRIES {
                return Ok(Err(held(&read_record(&file))));
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    /// The keeper's open file; every duplicate shares its lock.
    fn open(&self) -> io::Result<File> {
        let mut slot = self.file.borrow_mut();
        if let Some(file) = &*slot
            && is_same_file(file, &self.path)?
        {
            return file.try_clone();
        }
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let copy = file.try_clone()?;
        *slot = Some(file);
        Ok(copy)
    }
}

/// A lock of the directory that somebody has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holding {
    pub name: String,
    pub value: String,
    pub token: u64,
    pub holder: Holder,
}

/// The locks of `directory` that somebody has now, by name.
///
/// # Errors
/// When the directory or one of its lock files cannot be read.
pub fn holders(directory: &Path) -> io::Result<Vec<Holding>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".lock")) else {
            continue;
        };
        let file = File::open(&path)?;
        // For an instant a standby may find it taken: it tries again.
        if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
            let Record { token, value, host, pid } = read_record(&file);
            found.push(Holding { name: name.to_owned(), value, token, holder: Holder { host, pid } });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn held(record: &Record) -> Held {
    Held {
        value: record.value.clone().into_bytes(),
        remaining: None,
        token: FencingToken(record.token),
        holder: Some(Holder { host: record.host.clone(), pid: record.pid }),
    }
}

fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A record that cannot be read counts as none: the wall clock in the proposal still orders the tokens.
fn read_record(file: &File) -> Record {
    let mut text = [0; RECORD_MAX];
    let length = file.read_at(&mut text, 0).unwrap_or(0);
    serde_json::from_slice(&text[..length]).unwrap_or_default()
}

fn write_record(file: &File, record: &Record) -> io::Result<()> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    file.write_all_at(&text, 0)?;
    file.set_len(text.len() as u64)
}

/// Names of files in the lock directory that somebody let go of, or removed. A thread of its own, because reading them blocks.
fn watch(inotify: Inotify) -> mpsc::Receiver<OsString> {
    let (names, touched) = mpsc::channel(NAMES_MAX);
    let read = move || {
        while let Ok(events) = inotify.read_events() {
            for name in events.into_iter().filter_map(|event| event.name) {
                // Hints: what does not fit costs a poll. A closed channel is the end of the engine.
                if let Err(mpsc::error::TrySendError::Closed(_)) = names.try_send(name) {
                    return;
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("lock-watch".into()).spawn(read) {
        tracing::warn!(%error, "cannot watch the lock directory: take-over waits for the poll");
    }
    touched
}

async fn pass_hints(mut touched: mpsc::Receiver<OsString>, entries: Rc<RefCell<Entries>>) {
    while let Some(name) = touched.recv().await {
        for entry in entries.borrow().values().filter(|entry| entry.path.file_name() == Some(&name)) {
            let _ = entry.inbox.try_send(Box::new(FromNode::Touched { node: NODE }));
        }
    }
}
