//! Values that expire: when a replica looks at them.

use std::time::Duration;

use super::Replica;
use crate::clock::{Now, Stamp, micros};
use crate::event::Origin;
use crate::mistake::{Mistake, is_planted};
use crate::state::{StateError, Whose};

/// Longest time for which the wall clock is not looked at: it may jump.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

/// How often the values of others are looked at in the time for which they are left to them.
const LOOKS_PER_GRACE: u32 = 24;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(10);

/// When what about values that expire is due, in steady microseconds.
pub(super) struct ExpiryTimes {
    due_us: Option<u64>,
    /// Nothing is done before.
    not_before_us: u64,
    /// The values of others are not looked at before.
    look_us: u64,
}

impl ExpiryTimes {
    pub(super) fn new(now: Now) -> ExpiryTimes {
        ExpiryTimes {
            due_us: None,
            not_before_us: now.steady_us,
            look_us: now.steady_us,
        }
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.due_us
    }

    pub(super) fn wait_until(&mut self, steady_us: u64) {
        self.not_before_us = steady_us;
    }
}

impl Replica {
    /// Sees when the next value expires.
    pub(super) fn plan_expiry(&mut self, now: Now) {
        let after = |until: Stamp, grace_us: u64| {
            let until_us = until.as_micros().saturating_add(grace_us);
            let left_us = until_us.saturating_sub(now.wall_us);
            now.steady_us
                .saturating_add(left_us.min(micros(CLOCK_LOOK)))
        };
        let own = self.state.next_own_expiry();
        let own_us = own.map(|until| after(until, 0).max(self.expiry.not_before_us));
        let others = self.state.next_foreign_expiry();
        let grace_us = micros(self.config.expiry_grace);
        let others = others.filter(|_| !is_planted(Mistake::OrphansStay));
        let others_us = others.map(|until| after(until, grace_us).max(self.expiry.look_us));
        self.expiry.due_us = own_us.into_iter().chain(others_us).min();
    }

    /// Deletes what has expired, a little at a time.
    pub(super) fn tend_expiry(&mut self, now: Now) -> Result<(), StateError> {
        if self.expiry.due_us.is_none_or(|due| due > now.steady_us) {
            return Ok(());
        }
        let has_passed = |until: Option<Stamp>, grace_us: u64| {
            until.is_some_and(|until| until.as_micros().saturating_add(grace_us) <= now.wall_us)
        };
        if self.expiry.not_before_us <= now.steady_us && has_passed(self.state.next_own_expiry(), 0)
        {
            self.expiry.not_before_us = now.plus(self.config.reclaim_pause);
            self.expire(now, Whose::Own)?;
        }
        let grace_us = micros(self.config.expiry_grace);
        if self.expiry.look_us <= now.steady_us
            && has_passed(self.state.next_foreign_expiry(), grace_us)
        {
            let pause = self.config.expiry_grace / LOOKS_PER_GRACE;
            self.expiry.look_us = now.plus(pause.max(LOOK_PAUSE_MIN));
            if self.expire(now, Whose::Orphans)? {
                self.expiry.look_us = now.plus(self.config.reclaim_pause);
            }
        }
        Ok(())
    }

    /// One step; answers whether there is more to do.
    fn expire(&mut self, now: Now, whose: Whose) -> Result<bool, StateError> {
        let name = self.names.u64(..);
        let grace_us = micros(self.config.expiry_grace);
        let expired = self.state.expire_step(now, whose, grace_us, name)?;
        if let Some(damage) = &expired.damage {
            self.note_damage(damage);
            self.tell_storage_error(now, damage);
        }
        if !expired.changed.is_empty() {
            self.note_commit(now);
            let deleted = expired.changed.len() as u64;
            self.velocity.record_writes(now, deleted);
            self.note_own_news(now);
            self.tell_changes(expired.changed, Origin::Local);
        }
        Ok(expired.more)
    }
}
