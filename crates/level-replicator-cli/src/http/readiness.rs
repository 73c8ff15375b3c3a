//! Whether the daemon should be sent clients.
//!
//! The rule: a replica that has once been whole stays ready, alone or not, except while it is healed: then readers may see
//! what others have deleted.

use std::sync::atomic::{AtomicBool, Ordering};

use level_replicator::{Status, SyncState};

#[derive(Debug, Default)]
pub(crate) struct Readiness {
    was_ready: AtomicBool,
}

impl Readiness {
    /// Why nobody should be sent here yet, if so.
    pub(crate) fn reason_to_wait(&self, status: &Status) -> Option<String> {
        if status.sync_state == SyncState::Healing {
            let text = "being healed: values that others have deleted may show";
            return Some(text.to_owned());
        }
        if self.was_ready.load(Ordering::Relaxed) {
            return None;
        }
        if status.sync_state == SyncState::CatchingUp {
            let text = "catching up: half of another replica's batch may show";
            return Some(text.to_owned());
        }
        let has_met_somebody = status.peers.iter().any(|peer| peer.synced_ago.is_some());
        let hopes = status.peers.iter().filter(|peer| peer.failures == 0);
        let hopes = hopes.count();
        if !has_met_somebody && !status.paused && hopes > 0 {
            return Some(format!(
                "no exchange with a peer is complete yet: {hopes} of {} may still answer",
                status.peers.len()
            ));
        }
        self.was_ready.store(true, Ordering::Relaxed);
        None
    }
}
