//! Marks: what must have happened at least once in a campaign, or it proved less than it says.

macro_rules! marks {
    ($($name:ident $text:literal,)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mark { $($name),* }
        const ALL: &[(Mark, &str)] = &[$((Mark::$name, $text)),*];
    };
}

marks! {
    LookTimer "Standby: look by timer",
    LookHint "Standby: look by hint",
    Stands "Standby: a quorum looks free -> Candidate",
    Wins "Candidate: quorum of votes and one token -> Leader",
    Raises "Candidate: tokens differ -> raise",
    RaiseWins "Candidate: raise accepted by a quorum -> Leader",
    AsksAgain "Candidate: split, mine is smallest -> acquire again",
    FailsConflict "Candidate: conflict -> Standby, release",
    FailsNoQuorum "Candidate: no quorum -> Standby, release",
    FailsLate "Candidate: late -> Standby, release",
    Extends "Leader: extend by timer",
    ExtendsOnReturn "Leader: extend because a node came back",
    ChecksOnHint "Leader: check because of a hint",
    Renewed "extension: renewed",
    Unknown "extension: unknown",
    Evicted "extension: evicted",
    Foreign "extension: foreign",
    Prolongs "Leader: prolong the guard",
    Repairs "Leader: repair",
    StopsEvicted "Leader: stop, evicted",
    StopsAtStopAt "Leader: stop, stop_at",
    StopsOutbid "Leader: stop, outbid by a preferred host",
    StopsOnStepDown "Leader: stop, step-down",
    StopsOnPause "Leader: stop, pause",
    StopsPausedEverywhere "Leader: stop, a quorum of nodes says paused",
    StopsOnDrain "Leader: stop, drain",
    KillsOnCommand "Leader: kill, command",
    StopsGuardStopped "Leader: stop, the guard latched first",
    StopsTooLate "Leader: stop, too late for a child",
    StopsNeverStarted "Leader: stop, neither started nor refused",
    StopsExecFailed "Leader: stop, exec failed",
    StopsLaunchFailed "Leader: stop, launch failed",
    StopsGaveUp "Leader: stop, gave up",
    KillsForeign "Leader: kill, foreign",
    KillsAtKillAt "Leader: kill, kill_at",
    KillsGuardDied "Leader: kill, guard died",
    KillsGuardMute "Leader: kill, guard does not acknowledge",
    KillsGuardLate "Leader: kill, guard did not finish at kill_at",
    RestartsChild "Leader: child ended -> spawn after a delay",
    RestartsAsked "Leader: restart, asked",
    RestartsUnhealthy "Leader: restart, the child is unhealthy",
    RestartKills "guard: SIGKILL at kill_by of a restart",
    StopsWhileRestarting "guard: stop for good during a restart",
    LateHealth "a result about something that is not probed any more",
    HostFit "Standby: the host is fit",
    HostUnfit "Standby: the host is unfit",
    UnfitWithdraws "Candidate: unfit -> Standby, release",
    Finishes "Leader: child ended -> finished",
    Releases "Leader: tree proven dead -> release",
    ReleasedByQuorum "Releasing: a quorum released -> Standby",
    ReleasedByTime "Releasing: time -> Standby",
    Drained "Releasing: draining -> Stopped",
    CooldownOver "Standby: cooldown over",
    StayOut "Standby: stays out after a hand-over",
    Resumed "Standby: resumed",
    PausedEverywhere "Standby: a quorum of nodes says paused",
    ResumedEverywhere "Standby: so many say otherwise that no quorum can",
    LetsOthersFirst "Standby: a quorum looks free, others stand first",
    Bids "Standby: a less preferred host holds -> bid",
    LookFree "answer: look free",
    LookHeld "answer: look held",
    LookQuarantined "answer: look quarantined",
    LookPaused "answer: look paused",
    AcquireGranted "answer: acquire ok",
    AcquireMine "answer: acquire mine",
    AcquireHeld "answer: acquire held",
    AcquireQuarantined "answer: acquire quarantined",
    AcquirePaused "answer: acquire paused",
    AcquireLate "answer: acquire late",
    AcquireReleased "answer: acquire released",
    AcquireClock "answer: acquire clock",
    RaiseAccepted "answer: raise ok",
    RaiseOutrun "answer: raise outrun",
    RaiseRefused "answer: raise refused",
    ExtendOk "answer: extend ok",
    ExtendKept "answer: extend kept",
    ExtendEmpty "answer: extend empty",
    ExtendGone "answer: extend gone",
    ExtendForeign "answer: extend foreign",
    ExtendLate "answer: extend late",
    RepairOk "answer: repair ok",
    RepairForeign "answer: repair foreign",
    RepairRefused "answer: repair refused",
    Noted "answer: bid noted",
    PreferredHasIt "after all has healed the preferred host has it",
    Silent "answer: silent",
    NotServing "asked of a node that does not serve",
    Unwanted "a release remembered and carried out on reconnection",
    QuarantineOver "a node's quarantine ended under a connection",
    ReleasedByGuard "the guard's releaser released",
    LegacyHeld "a client of the npm package held the lock",
    LateCommand "a command carried out after its sender gave up",
    RequestLost "a request lost for good, its connection with it",
    ReplyLost "a command took effect and its reply was lost",
    Echo "a request carried out a second time",
    OneWay "a link cut in one direction only",
    NodeWithData "a node restarted with its data",
    NodeWithOldData "a node restarted with an older state of its data",
    ClockStrobes "a node's clock jumped to and fro",
    LegacyBeside "a client of the npm package refused by keeperd's lock",
    F1 "F1: a vote whose reply took longer than the drift",
    F2 "F2: daemon frozen past kill_at under a living child",
    F3 "F3: a node that held a living term's vote came back without data",
    F4 "F4: a node's clock jumped ahead over a living key",
    F5 "F5: a node's clock jumped back under a living key",
    F6 "F6: a node's clock stood still under a living key",
    F7 "F7: no answer within node_timeout while holding",
    F8 "F8: stop_signal out and the tree alive a while, released only then",
    F9 "F9: an extension arrived after the key had expired",
    F10 "F10: every node restarted within one term",
    F11 "F11: nobody had a quorum of votes",
    F12 "F12: a grant to somebody who had given up",
    F13 "F13: a host suspended with its child (token only)",
    F14 "F14: processes that outlive the main one",
    F15 "F15: a child that ignores its stop signal, ended by SIGKILL",
    F16 "F16: a stale writer refused by its token",
    F17 "F17: a new quorum had not seen the last token",
}

#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Coverage { counts: vec![0; ALL.len()] }
    }
}

impl Coverage {
    pub fn mark(&mut self, mark: Mark) {
        self.counts[mark as usize] += 1;
    }

    pub fn mark_if(&mut self, happened: bool, mark: Mark) {
        if happened {
            self.mark(mark);
        }
    }

    pub fn add(&mut self, other: &Coverage) {
        for (mine, more) in self.counts.iter_mut().zip(&other.counts) {
            *mine += more;
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ALL.iter().map(|(_, text)| *text).zip(self.counts.iter().copied())
    }

    pub fn missing(&self) -> Vec<&'static str> {
        self.all().filter(|(_, count)| *count == 0).map(|(text, _)| text).collect()
    }
}
