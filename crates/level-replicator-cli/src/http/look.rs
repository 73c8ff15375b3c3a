//! What is seen of the database.
//!
//! The rule: however many ask, one thread at most looks, and nobody waits for it longer than they may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use level_replicator::{Db, MemberStatus, Status};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::http::options::SHARED_FOR;

/// Some key. That it can be looked up tells that the database is open, and that its engine answers.
const PROBE: &[u8] = b"\0";

/// What was seen at one moment.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: Status,
    pub(crate) members: Vec<MemberStatus>,
    /// Why nothing can be read, if so.
    pub(crate) fault: Option<String>,
    at: Instant,
}

/// The looks of all who ask.
pub(crate) struct Looks {
    db: Db,
    patience: Duration,
    latest: Mutex<Latest>,
}

#[derive(Default)]
struct Latest {
    /// A look that nobody has seen the end of.
    running: Option<JoinHandle<Seen>>,
    seen: Option<Arc<Seen>>,
}

impl Looks {
    pub(crate) fn new(db: Db, patience: Duration) -> Looks {
        Looks {
            db,
            patience,
            latest: Mutex::default(),
        }
    }

    /// What is there now, or was a moment ago.
    ///
    /// # Errors
    ///
    /// A line: the database does not answer.
    pub(crate) async fn look(&self) -> Result<Arc<Seen>, String> {
        let seen = timeout(self.patience, self.look_patiently()).await;
        seen.unwrap_or_else(|_| {
            let seconds = self.patience.as_secs_f32();
            Err(format!(
                "the database has not answered for {seconds} s: look at the disk and the log"
            ))
        })
    }

    async fn look_patiently(&self) -> Result<Arc<Seen>, String> {
        let mut latest = self.latest.lock().await;
        loop {
            if let Some(seen) = &latest.seen
                && seen.at.elapsed() < SHARED_FOR
            {
                return Ok(Arc::clone(seen));
            }
            let running = latest.running.get_or_insert_with(|| {
                let db = self.db.clone();
                spawn_blocking(move || see(&db))
            });
            // Whoever gives up here leaves it running, for the next one.
            let seen = running.await;
            latest.running = None;
            let seen = seen.map_err(|error| format!("the look at the database failed: {error}"))?;
            latest.seen = Some(Arc::new(seen));
        }
    }
}

fn see(db: &Db) -> Seen {
    Seen {
        status: db.status(),
        members: db.members(),
        fault: db.get(PROBE).err().map(|error| error.to_string()),
        at: Instant::now(),
    }
}
