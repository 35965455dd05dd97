//! Taking back a keeper for a preferred host: the standby that bids, and the holder that gives way. Both by their own file.

use super::Change;
use super::child::Child;
use super::context::Context;
use super::extension::Care;
use super::release::After;
use super::term::Term;
use crate::core::event::{Event, Reason};
use crate::core::lease::NodeId;
use crate::core::preference::Bid;
use crate::core::request::{Request, Ticket};
use crate::core::time::Instant;

/// Each term that ended because the keeper does not run on this host doubles `hold` for it, so many times at most: taking a keeper back
/// only to fail costs an interruption each time.
const UNFIT_MAX: u32 = 6;

/// A standby's side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub(super) struct Bidder {
    /// A less preferred host holds since then, while this one could: it stands, and reaches a quorum of nodes.
    well_since: Option<Instant>,
    said: bool,
}

impl Bidder {
    pub fn node_lost(&mut self, cx: &Context) {
        if cx.serving.len() < cx.settings.quorum.size() {
            *self = Bidder::default();
        }
    }

    /// After a look that found the lock held: bids once this host was well for long enough, or says when that will be. One bid per
    /// look; it expires unless it is renewed.
    pub fn judge(&mut self, cx: &mut Context, now: Instant, stands: bool, first: bool) -> Option<Instant> {
        let preference = &cx.settings.preference;
        let able = stands && cx.serving.len() >= cx.settings.quorum.size();
        let holder = cx.seen.as_ref().and_then(|held| held.holder.clone());
        let Some(holder) =
            holder.filter(|holder| able && !holder.host.is_empty() && preference.outranks(&holder.host))
        else {
            *self = Bidder::default();
            return None;
        };
        let bids_at =
            *self.well_since.get_or_insert(now) + preference.hold() * (1 << cx.unfit.min(UNFIT_MAX));
        if now < bids_at {
            return Some(bids_at);
        }
        if first {
            cx.ask_all(now, &Request::Bid { priority: cx.settings.preference.own() });
        }
        if !std::mem::replace(&mut self.said, true) {
            cx.emit(Event::Bids { holder });
        }
        None
    }
}

impl Term {
    /// Gives way when a quorum of nodes has the same bid of a host that this host's file prefers. Not in a term younger than `hold`,
    /// so that keepers change hands for preference at most once in that time, whatever the files say.
    pub fn handle_bid(
        &mut self,
        cx: &mut Context,
        now: Instant,
        node: NodeId,
        ticket: Ticket,
        bid: Bid,
    ) -> Option<Change> {
        if !self.extension.asked(ticket) {
            return None;
        }
        self.extension.bids.insert(node, bid.clone());
        let same = self.extension.bids.iter().filter(|(_, other)| other.host == bid.host).count();
        let preference = &cx.settings.preference;
        // A keeper that has finished must not be run once more elsewhere.
        let finished = matches!(self.child, Child::Finished { .. });
        let settled = self.is_serving() && self.extension.care == Care::Extend && !finished;
        let old_enough = now.since(self.since) >= preference.hold();
        if same < cx.settings.quorum.size() || !settled || !old_enough || !preference.yields_to(&bid) {
            return None;
        }
        // Not for as long as after a command: should the bidder be gone by now, somebody has to run it.
        self.stop(cx, now, Reason::Outbid(bid), After::GiveWay)
    }
}
