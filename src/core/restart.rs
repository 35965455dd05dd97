//! What happens when the child ends: restart within the term, give the keeper up to another host, or be finished.

use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// The restart keys of a keeper, validated by the configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RestartRules {
    pub policy: RestartPolicy,
    pub success_exit_codes: Vec<i32>,
    pub delay: Duration,
    pub delay_max: Duration,
    pub give_up_after: u32,
    pub give_up_window: Duration,
    pub cooldown: Duration,
}

impl Default for RestartRules {
    fn default() -> Self {
        RestartRules {
            policy: RestartPolicy::Always,
            success_exit_codes: vec![0],
            delay: Duration::from_secs(1),
            delay_max: Duration::from_secs(60),
            give_up_after: 5,
            give_up_window: Duration::from_secs(300),
            cooldown: Duration::from_secs(60),
        }
    }
}
