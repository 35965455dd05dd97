//! Broken variants. Rules of the node and of the guard are broken by a switch in their models; rules of the core by falsifying
//! what goes into the production `Election` and what comes out of it.

macro_rules! mutants {
    ($($name:ident $word:literal $rule:literal,)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant { $($name),* }

        impl Mutant {
            pub const ALL: &[Mutant] = &[$(Mutant::$name),*];

            pub fn name(self) -> &'static str {
                match self { $(Mutant::$name => $word),* }
            }

            /// The rule it breaks.
            pub fn rule(self) -> &'static str {
                match self { $(Mutant::$name => $rule),* }
            }
        }
    };
}

mutants! {
    ValidityFromReply "validity-from-reply" "validity counts from before the first byte is sent",
    MineFromResend "mine-from-resend" "`mine` counts from the first request ever sent (R8)",
    SilenceIsYes "silence-is-yes" "silence is unknown, never a yes",
    ReleaseBeforeDeath "release-before-death" "released only after the tree is proven dead",
    ProofSkipped "proof-skipped" "a lost guard's tree is dead only when it is proven (R3)",
    NoRaise "no-raise" "tokens that differ are raised to one on a quorum",
    RepairWithoutQuorum "repair-without-quorum" "repair only after a strict quorum in the same round",
    RepairOnPush "repair-on-push" "a re-check caused by a push only classifies (R23)",
    ExtendCreates "extend-creates" "extend never creates",
    Steal "steal" "a minority vote is never taken from its owner",
    NoQuarantine "no-quarantine" "a node that may have lost data does not vote",
    MarkerOnConnectOnly "marker-on-connect-only" "the marker is read inside acquire (R1)",
    QuarantineByUptime "quarantine-by-uptime" "the quarantine is longer than the largest ttl (R2)",
    RunIdIgnored "run-id-ignored" "the marker names the run it was written for (R2b)",
    RaiseUnmarked "raise-unmarked" "raise is refused by a node that abstains (R13)",
    NoShadow "no-shadow" "a lock deleted by hand is still kept by its shadow (R5)",
    ReleaseUnconditional "release-unconditional" "release clears the shadow only of its own value (R16)",
    ReleasedLivesAgain "released-lives-again" "a released value never lives again on that node (R15)",
    NoTokenWriteBack "no-token-write-back" "extend and repair write the token back (R12)",
    ProposalIgnored "proposal-ignored" "a token is at least the proposal, which follows the clock",
    NoGuard "no-guard" "the guard kills at its own deadlines",
    NoLastLook "no-last-look" "the forked process looks at the clock before exec (R9)",
    DeadlineAfterStop "deadline-after-stop" "from stop_at on no new deadline is accepted (R9)",
    RestartLeavesRest "restart-leaves-rest" "a child is started only when all of the last one is dead",
    NoGuardWatch "no-guard-watch" "a guard that does not acknowledge, or does not finish, is killed (R10)",
    HoldIgnored "hold-ignored" "a keeper is taken back at most once in `hold`, whatever the files say",
    ClocksAnywhere "clocks-anywhere" "a control: a node's clock that jumps ahead beside other faults ends leases early",
    ClocksApart "clocks-apart" "a control: clocks that differ by more than the 1 % a lease allows for are not survived",
}

impl Mutant {
    pub fn named(name: &str) -> Option<Mutant> {
        Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}
