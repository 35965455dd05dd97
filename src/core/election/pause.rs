//! Paused on all hosts, by a mark on the nodes: the standby that does not stand, and the holder that hands over. No safety rule depends on it.

use super::Change;
use super::State;
use super::context::Context;
use super::release::After;
use super::standby::{Bar, Standby};
use super::term::Term;
use crate::core::event::Reason;
use crate::core::lease::NodeId;
use crate::core::request::{LookAnswer, Pause, Ticket};
use crate::core::time::Instant;

impl Standby {
    /// Held back once a quorum of nodes says so, and until so many say otherwise that none can any more: silence ends no pause.
    pub fn held_back(&mut self, cx: &Context, now: Instant) -> Option<Change> {
        let (look, quorum) = (self.look.as_ref()?, cx.settings.quorum);
        let paused = look.count(|answer| pause(answer).is_some());
        let otherwise = look.count(|answer| pause(answer).is_none());
        match self.bar {
            Bar::None | Bar::StayOut { .. } if paused >= quorum.size() => {
                // A hint during this look is not to be forgotten: it may be the end of the pause.
                let look_at = if self.hinted { now } else { now + cx.poll_every() };
                let pause = look.said().find_map(|(_, answer)| pause(answer)).cloned()?;
                let state = State::standing_by(Bar::PausedEverywhere, look_at);
                Some(Change::to(state, Reason::PausedEverywhere(pause)))
            }
            Bar::PausedEverywhere if otherwise > quorum.nodes() - quorum.size() => {
                self.lift_bar(now, Reason::ResumedEverywhere)
            }
            Bar::None | Bar::StayOut { .. } | Bar::Cooldown { .. } | Bar::PausedEverywhere | Bar::Paused => {
                None
            }
        }
    }
}

fn pause(answer: &LookAnswer) -> Option<&Pause> {
    match answer {
        LookAnswer::Paused { pause, .. } => Some(pause),
        LookAnswer::Free { .. } | LookAnswer::Held(_) | LookAnswer::Quarantined { .. } => None,
    }
}

impl Term {
    /// Hands over once a quorum of nodes says so in one round; to nobody, as the same nodes grant the lock to nobody.
    pub fn handle_pause(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        ticket: Ticket,
        pause: Pause,
    ) -> Option<Change> {
        if !self.extension.asked(ticket) {
            return None;
        }
        self.extension.pauses.insert(node, pause.clone());
        if self.extension.pauses.len() < cx.settings.quorum.size() {
            return None;
        }
        self.stop(cx, now, Reason::PausedEverywhere(pause), After::Stand)
    }
}
