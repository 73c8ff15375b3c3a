//! `LR.CHANGES`, `LR.BACKUP` and `LR.VERIFY`.

use std::time::{Duration, Instant};

use level_replicator::{Cursor, VerifyProgress};
use serde_json::json;

use crate::feed::{Page, verification_json};
use crate::resp::connection::walks::parse_limit;
use crate::resp::connection::{Connection, Stop};
use crate::resp::refusal::{Refusal, SYNTAX};
use crate::resp::request::{Request, parse_integer};

/// Changes of one reply.
const CHANGES_DEFAULT: usize = 1_000;
const CHANGES_MAX: usize = 10_000;

/// How often it is looked for a change, at first and at most.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(20);

/// How often the log tells how far a check or a backup is.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// What `LR.CHANGES` was asked for beside the cursor.
struct Asked {
    limit: usize,
    block: Duration,
}

impl Asked {
    fn parse(request: &Request) -> Result<Asked, Refusal> {
        let mut asked = Asked {
            limit: CHANGES_DEFAULT,
            block: Duration::ZERO,
        };
        let mut words = request.arguments_from(2);
        while let Some(word) = words.next() {
            match &word.to_ascii_uppercase()[..] {
                b"LIMIT" => asked.limit = parse_limit(words.next())?.clamp(1, CHANGES_MAX),
                b"BLOCK" => {
                    let millis = words.next().and_then(parse_integer);
                    let millis = millis.and_then(|millis| u64::try_from(millis).ok());
                    let invalid = "ERR timeout is not an integer or out of range";
                    let millis = millis.ok_or_else(|| Refusal::new(invalid))?;
                    asked.block = Duration::from_millis(millis);
                }
                _ => return Err(SYNTAX),
            }
        }
        Ok(asked)
    }
}

impl Connection {
    /// The changes that follow a cursor; waits for the first if it is told to.
    pub(super) async fn changes(&mut self, request: &Request) -> Result<(), Stop> {
        let asked = Asked::parse(request)?;
        let cursor = match request.argument(1) {
            b"$" => self.server.db.cursor()?,
            text => parse_cursor(text)?,
        };
        let deadline = Instant::now().checked_add(asked.block);
        let mut pause = LOOK_MIN;
        loop {
            let page = Page::read(&self.server.db, cursor, b"", asked.limit)?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !page.changes.is_empty() || left.is_some_and(|left| left.is_zero()) {
                self.out.bulk(page.to_json());
                return Ok(());
            }
            // Others learn of the replies to what came before while this one waits.
            self.flush().await?;
            self.pause_for(pause.min(left.unwrap_or(pause))).await?;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    pub(super) async fn backup(&mut self, request: &Request) -> Result<(), Stop> {
        let directory = std::str::from_utf8(request.argument(1))
            .map_err(|_| Refusal::new("ERR directory is no text"))?
            .to_owned();
        let mut told = Instant::now();
        let report = self
            .on_a_thread(move |db| {
                db.backup_with(&directory, |progress| {
                    if told.elapsed() >= TELL_INTERVAL {
                        told = Instant::now();
                        tracing::info!(rows = progress.rows, bytes = progress.bytes, "backing up");
                    }
                })
            })
            .await?;
        let report = json!({
            "keys": report.keys,
            "rows": report.rows,
            "bytes": report.bytes,
            "elapsed_ms": u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        });
        self.out.bulk(report.to_string());
        Ok(())
    }

    pub(super) async fn verify(&mut self) -> Result<(), Stop> {
        let mut told = Instant::now();
        let found = self
            .on_a_thread(move |db| {
                db.verify(|VerifyProgress { rows, total, .. }| {
                    if told.elapsed() >= TELL_INTERVAL {
                        told = Instant::now();
                        tracing::info!(rows, total, "verifying");
                    }
                })
            })
            .await?;
        self.out.bulk(verification_json(&found));
        Ok(())
    }
}

fn parse_cursor(text: &[u8]) -> Result<Cursor, Refusal> {
    let text = String::from_utf8_lossy(text);
    text.parse()
        .map_err(|error| Refusal::new(format!("ERR {error}")))
}
