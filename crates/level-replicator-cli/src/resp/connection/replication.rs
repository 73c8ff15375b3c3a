//! Commands on the replica and its peers, and `WAIT`.
//!
//! The rule: what may wait for a peer, or reads everything, takes one of a few threads; a `WAIT` takes none.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use level_replicator::{Db, Error, ReplicaId};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::resp::command::Action;
use crate::resp::connection::walks::parse_limit;
use crate::resp::connection::{Connection, Stop};
use crate::resp::options::{CONFLICTS_BYTES_MAX, FREE_REQUEST_BYTES, SYNC_TIMEOUT};
use crate::resp::refusal::{Refusal, SYNTAX};
use crate::resp::request::{Request, parse_integer};

/// How long a `WAIT` sleeps at first, and at most.
const WAIT_SLEEP_MIN: Duration = Duration::from_millis(1);
const WAIT_SLEEP_MAX: Duration = Duration::from_millis(20);

/// Connections that may wait before all of them ask less often.
const EAGER_WAITERS: usize = 200;

impl Connection {
    pub(super) async fn replicate(
        &mut self,
        action: Action,
        request: &Request,
    ) -> Result<(), Stop> {
        let db = &self.server.db;
        match action {
            Action::Siblings => {
                let siblings = db.siblings(request.argument(1))?;
                self.out.array(siblings.len());
                for sibling in siblings {
                    self.out.bulk(&sibling.value);
                    self.flush_if_full().await?;
                }
                return Ok(());
            }
            Action::Conflicts => return self.conflicts(request).await,
            Action::Digest => {
                let digest = self.on_a_thread(|db| db.digest()).await?;
                self.out.bulk(format!("{digest:032x}"));
                return Ok(());
            }
            Action::Status => {
                let report = crate::report::status_json(db);
                self.out.bulk(report);
                return Ok(());
            }
            Action::Peers => {
                let report = crate::report::peers_json(db);
                self.out.bulk(report);
                return Ok(());
            }
            Action::Sync => {
                let patience = sync_timeout(request)?;
                self.on_a_thread(move |db| db.sync_now(patience)).await?;
            }
            Action::Pause => self.on_a_thread(|db| db.pause()).await?,
            Action::Resume => db.resume()?,
            Action::AddPeer => db.add_peer(text(request.argument(1))?)?,
            Action::DropPeer => db.remove_peer(text(request.argument(1))?)?,
            Action::Retire => {
                let replica = replica_id(request.argument(1))?;
                self.on_a_thread(move |db| db.retire(replica)).await?;
            }
            _ => return Err(SYNTAX.into()),
        }
        self.out.simple("OK");
        Ok(())
    }

    /// Calls what may wait. Only a few such calls run at a time; others wait for their turn.
    pub(super) async fn on_a_thread<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Db) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Stop> {
        let turn = self.server.blocking.acquire().await;
        let _turn = turn.map_err(|_| Stop::Ended)?;
        let db = self.server.db.clone();
        let called = spawn_blocking(move || call(&db)).await;
        Ok(called.map_err(|_| Stop::Ended)??)
    }

    async fn conflicts(&mut self, request: &Request) -> Result<(), Stop> {
        let limit = match (request.len(), &request.argument(1).to_ascii_uppercase()[..]) {
            (1, _) => usize::MAX,
            (3, b"LIMIT") => parse_limit(Some(request.argument(2)))?,
            _ => return Err(SYNTAX.into()),
        };
        let collect = move |db: &Db| {
            let mut keys = Vec::new();
            let mut bytes = 0;
            for conflict in db.conflicts().take(limit) {
                let (key, _) = conflict?;
                bytes += key.len() + size_of_val(&key);
                if bytes > CONFLICTS_BYTES_MAX {
                    return Ok(None);
                }
                keys.push(key);
            }
            Ok(Some(keys))
        };
        let keys = self.on_a_thread(collect).await?;
        let keys = keys.ok_or_else(|| {
            Refusal::new(format!(
                "ERR conflicts of more than {CONFLICTS_BYTES_MAX} bytes of keys; ask for fewer by LIMIT"
            ))
        })?;
        self.out.array(keys.len());
        for key in keys {
            self.out.bulk(&key);
            self.flush_if_full().await?;
        }
        Ok(())
    }

    /// Waits until so many other replicas have what this connection wrote; answers how many have.
    pub(super) async fn wait_for_replicas(&mut self, request: &Request) -> Result<(), Stop> {
        let not_integer = || Refusal::new("ERR value is not an integer or out of range");
        let wanted = parse_integer(request.argument(1)).ok_or_else(not_integer)?;
        let wanted = usize::try_from(wanted).map_err(|_| not_integer())?;
        let millis = parse_integer(request.argument(2))
            .ok_or_else(|| Refusal::new("ERR timeout is not an integer or out of range"))?;
        let millis = u64::try_from(millis).map_err(|_| Refusal::new("ERR timeout is negative"))?;
        let deadline = match millis {
            0 => None,
            millis => Instant::now().checked_add(Duration::from_millis(millis)),
        };

        // Others learn of the replies to what came before while this one waits.
        self.flush().await?;
        let waiters = &self.server.waiters;
        waiters.set(waiters.get() + 1);
        let reached = self.count_replicas(wanted, deadline).await;
        let waiters = &self.server.waiters;
        waiters.set(waiters.get() - 1);
        self.out.count(reached?);
        Ok(())
    }

    async fn count_replicas(
        &mut self,
        wanted: usize,
        deadline: Option<Instant>,
    ) -> Result<usize, Stop> {
        let mut others = BTreeSet::new();
        let mut pause = WAIT_SLEEP_MIN;
        loop {
            others.append(&mut self.replicas_that_have_ours()?);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if others.len() >= wanted || left.is_some_and(|left| left.is_zero()) {
                return Ok(others.len());
            }
            self.pause_for(pause.min(left.unwrap_or(pause))).await?;
            let crowd = 1 + self.server.waiters.get() / EAGER_WAITERS;
            pause = (pause * 2).min(WAIT_SLEEP_MAX * crowd as u32);
        }
    }

    /// Those who have the last write of this connection; without one, those who are connected.
    fn replicas_that_have_ours(&self) -> Result<BTreeSet<ReplicaId>, Error> {
        match self.last_dot {
            Some(dot) => self.server.db.replicas_with(dot),
            None => {
                let peers = self.server.db.peers().into_iter();
                let connected = peers.filter(|peer| peer.connected);
                Ok(connected.filter_map(|peer| peer.replica).collect())
            }
        }
    }

    /// Sleeps, and notices if the client goes or the server stops meanwhile.
    pub(super) async fn pause_for(&mut self, pause: Duration) -> Result<(), Stop> {
        if self.reader.waiting() >= FREE_REQUEST_BYTES {
            tokio::time::sleep(pause).await;
            return Ok(());
        }
        let said = std::future::poll_fn(|context| {
            if self.client.mailbox.ended().is_some() {
                return std::task::Poll::Ready(Err(Stop::Ended));
            }
            self.client.mailbox.set_waker(context.waker());
            self.poll_read(context)
        });
        match timeout(pause, said).await {
            // What it said is taken up afterwards.
            Ok(said) => said,
            Err(_) => Ok(()),
        }
    }
}

fn sync_timeout(request: &Request) -> Result<Duration, Refusal> {
    match request.len() {
        1 => Ok(SYNC_TIMEOUT),
        2 => {
            let millis = parse_integer(request.argument(1));
            let millis = millis.and_then(|millis| u64::try_from(millis).ok());
            let invalid = || Refusal::new("ERR timeout is not an integer or out of range");
            Ok(Duration::from_millis(millis.ok_or_else(invalid)?))
        }
        _ => Err(Refusal::new(
            "ERR wrong number of arguments for 'lr.sync' command",
        )),
    }
}

fn text(argument: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(argument);
    text.map_err(|_| Refusal::new("ERR address is no text: expected host:port"))
}

/// A replica's name as it is shown: 32 hex digits.
fn replica_id(argument: &[u8]) -> Result<ReplicaId, Refusal> {
    let invalid = || Refusal::new("ERR id is no replica's: expected 32 hex digits");
    if argument.len() != 32 || !argument.iter().all(u8::is_ascii_hexdigit) {
        return Err(invalid());
    }
    let digits = std::str::from_utf8(argument).map_err(|_| invalid())?;
    let number = u128::from_str_radix(digits, 16).map_err(|_| invalid())?;
    Ok(ReplicaId(number.to_be_bytes()))
}
