//! What happened lately that somebody should know: what the log warns of, for the page.
//!
//! The rule: bounded, and what happens again takes the place of what was said of it before.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use level_replicator::Event;
use serde_json::{Value, json};

use crate::http::options::RECENT_MAX;

/// Longest text that is kept: it may come from a peer.
const TEXT_CHARS_MAX: usize = 300;

/// What happened lately, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    happened: Mutex<VecDeque<Happened>>,
}

#[derive(Debug)]
struct Happened {
    at: SystemTime,
    what: &'static str,
    /// A replica or an address.
    whom: Option<String>,
    text: String,
    times: u64,
}

impl Recent {
    /// Remembers an event, if somebody should know of it.
    pub(crate) fn hear(&self, event: &Event) {
        if let Event::Connect { peer } | Event::Connection { peer } = event {
            // It is over.
            let address = peer.address.as_str();
            self.happened()
                .retain(|known| known.what != "error" || known.whom.as_deref() != Some(address));
        }
        let Some((what, whom, text)) = told(event) else {
            return;
        };
        let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
        let mut happened = self.happened();
        let before = happened
            .iter()
            .position(|known| known.what == what && known.whom == whom);
        let before = before.and_then(|place| happened.remove(place));
        if happened.len() >= RECENT_MAX {
            happened.pop_front();
        }
        happened.push_back(Happened {
            at: SystemTime::now(),
            what,
            whom,
            text,
            times: before.map_or(1, |before| before.times.saturating_add(1)),
        });
    }

    pub(crate) fn json(&self) -> Value {
        let told = |happened: &Happened| {
            json!({
                "at_ms": crate::report::unix_ms(happened.at),
                "what": happened.what,
                "whom": happened.whom,
                "text": happened.text,
                "times": happened.times,
            })
        };
        Value::Array(self.happened().iter().map(told).collect())
    }

    fn happened(&self) -> MutexGuard<'_, VecDeque<Happened>> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said of an event: its kind, whom it concerns, and a sentence.
fn told(event: &Event) -> Option<(&'static str, Option<String>, String)> {
    let told = match event {
        Event::Error { address, error } => {
            let address = address.as_ref().map(|address| address.as_str().to_owned());
            ("error", address, error.to_string())
        }
        Event::ClockSkew { peer, ahead_ms } => {
            let text = format!(
                "its clock is {ahead_ms} ms ahead of ours: ties between concurrent writes suffer; set that machine's clock"
            );
            ("clock skew", Some(peer.replica.to_string()), text)
        }
        Event::Divergence { peer, .. } => {
            let text = "it held other values for the same writes; both sides write again what the other lacks";
            (
                "divergence",
                Some(peer.replica.to_string()),
                text.to_owned(),
            )
        }
        Event::WriterCollision { keys, .. } => {
            let text =
                format!("two processes wrote under one name; {keys} keys were written again");
            ("writer collision", None, text)
        }
        Event::Renamed { before, now } => {
            let text = format!("this replica was {before} and is {now} from now on");
            ("renamed", None, text)
        }
        Event::Excluded { replica } => {
            let text = "it was silent for the horizon; deletes are reclaimed without it";
            ("excluded", Some(replica.to_string()), text.to_owned())
        }
        Event::Promoted => {
            let text = "nobody could finish the heal; a value that was replaced may appear again";
            ("promoted", None, text.to_owned())
        }
        Event::Rebuilt { damage } => {
            let text = format!("what was known was damaged on disk and rebuilt: {damage}");
            ("rebuilt", None, text)
        }
        _ => return None,
    };
    Some(told)
}

#[cfg(test)]
mod tests {
    use level_replicator::ReplicaId;

    use super::*;

    fn excluded(number: u128) -> Event {
        Event::Excluded {
            replica: ReplicaId(number.to_be_bytes()),
        }
    }

    #[test]
    fn what_happens_again_is_counted_and_the_oldest_is_forgotten() {
        let recent = Recent::default();
        recent.hear(&excluded(1));
        recent.hear(&Event::Promoted);
        recent.hear(&excluded(1));
        recent.hear(&Event::Missed { count: 7 });
        let told = recent.json();
        let shown: Vec<(&str, u64)> = told
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|told| Some((told["what"].as_str()?, told["times"].as_u64()?)))
            .collect();
        assert_eq!(shown, [("promoted", 1), ("excluded", 2)]);

        (0..1_000).for_each(|number| recent.hear(&excluded(number)));
        let told = recent.json();
        let last = ReplicaId(999_u128.to_be_bytes()).to_string();
        assert_eq!(told.as_array().map(Vec::len), Some(RECENT_MAX));
        assert_eq!(told[RECENT_MAX - 1]["whom"], last);
    }

    #[test]
    fn texts_of_others_are_bounded() {
        let recent = Recent::default();
        recent.hear(&Event::Rebuilt {
            damage: "x".repeat(1 << 20),
        });
        let told = recent.json();
        assert_eq!(told[0]["text"].as_str().map(str::len), Some(TEXT_CHARS_MAX));
    }
}
