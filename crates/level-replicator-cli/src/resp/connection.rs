//! One connection: what it has said so far, and its loop.
//!
//! The rule: replies come in the order of the requests. Consecutive writes are handed over together, and anything else
//! waits until they are committed; so a connection always sees what it wrote.

mod exchange;
mod follow;
mod information;
mod listening;
mod replication;
mod session;
mod transaction;
mod walks;

use std::rc::Rc;

use level_replicator::{Dot, Error};
use tokio::net::TcpStream;

use crate::resp::client::Client;
use crate::resp::command::{self, Action, Command, InMulti, Run};
use crate::resp::edit::View;
use crate::resp::options::{
    ARGUMENTS_MAX, FLUSH_BYTES, GROUP_BYTES_MAX, GROUP_COMMANDS_MAX, KEY_BYTES_MAX, RespOptions,
};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{Protocol, ReplyWriter};
use crate::resp::request::{Bounds, Request, RequestReader};
use crate::resp::server::Server;
use crate::resp::subscriptions::Subscribed;
use crate::resp::writer::{Unit, Watch};

use transaction::Multi;

/// Largest request, whatever the options say.
const REQUEST_BYTES_CEILING: usize = 1 << 30;

/// One connection.
pub(crate) struct Connection {
    server: Rc<Server>,
    client: Rc<Client>,
    stream: TcpStream,
    reader: RequestReader,
    out: ReplyWriter,
    is_authenticated: bool,
    is_ending: bool,
    /// Writes that are to be handed over together.
    writes: Vec<Unit>,
    writes_bytes: usize,
    /// The last write that was known when ours was answered.
    last_dot: Option<Dot>,
    multi: Option<Multi>,
    watches: Vec<Watch>,
    subscribed: Subscribed,
    /// What it counts for among the bytes that wait.
    charged: usize,
}

/// Why a command, or the connection, goes no further.
pub(crate) enum Stop {
    /// The client is told why, and goes on.
    Refused(Refusal),
    /// The connection ends.
    Ended,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Refused(error.into())
    }
}

/// What those may send who may send anything.
fn bounds(options: &RespOptions) -> Bounds {
    Bounds {
        arguments: ARGUMENTS_MAX,
        argument_bytes: options.value_bytes_max + KEY_BYTES_MAX,
        // Places in a request are kept in 32 bits.
        request_bytes: options.request_bytes_max.min(REQUEST_BYTES_CEILING),
        stranger: false,
    }
}

impl Connection {
    pub(crate) fn new(server: Rc<Server>, client: Rc<Client>, stream: TcpStream) -> Connection {
        let is_authenticated = server.options.password.is_none();
        let bounds = if is_authenticated {
            bounds(&server.options)
        } else {
            Bounds::stranger()
        };
        Connection {
            server,
            client,
            stream,
            reader: RequestReader::new(bounds),
            out: ReplyWriter::default(),
            is_authenticated,
            is_ending: false,
            writes: Vec::new(),
            writes_bytes: 0,
            last_dot: None,
            multi: None,
            watches: Vec::new(),
            subscribed: Subscribed::default(),
            charged: 0,
        }
    }

    /// Serves the connection to its end.
    pub(crate) async fn run(mut self) {
        // However it ends, there is nobody left to be told.
        let _ = self.serve().await;
    }

    async fn serve(&mut self) -> Result<(), Stop> {
        while !self.is_ending {
            match self.reader.next_request() {
                Ok(Some(request)) => self.take(request).await?,
                Ok(None) => {
                    self.commit_writes().await?;
                    self.flush().await?;
                    self.wait().await?;
                    self.deliver().await?;
                    continue;
                }
                Err(error) => {
                    self.commit_writes().await?;
                    self.out.error(&format!("ERR {error}"));
                    return self.say_last().await;
                }
            }
            if self.out.len() >= FLUSH_BYTES {
                self.flush().await?;
            }
        }
        self.commit_writes().await?;
        self.flush().await
    }

    /// Does what a request asks for, or writes why not.
    async fn take(&mut self, request: Request) -> Result<(), Stop> {
        let counts = &self.server.counts;
        counts.commands.set(counts.commands.get() + 1);
        let command = match self.admit(&request) {
            Ok(command) => command,
            Err(refusal) => {
                if let Some(multi) = &mut self.multi {
                    multi.is_refused = true;
                }
                return self.refuse(&refusal).await;
            }
        };
        self.client.last_command.set(command.name);

        if let Some(multi) = &mut self.multi
            && command.in_multi == InMulti::Queued
        {
            match multi.push(command, request) {
                Ok(()) => self.out.simple("QUEUED"),
                Err(refusal) => refusal.write(&mut self.out),
            }
            self.client.queued.set(self.multi.as_ref().map(Multi::len));
            return Ok(());
        }
        match command.run {
            Run::Write(write) => {
                let answers_value = command.answers_value(&request);
                self.writes_bytes += request.size();
                self.writes.push(Unit::Write {
                    write,
                    request,
                    stands_first: command.stands_first,
                });
                let is_full =
                    self.writes.len() >= GROUP_COMMANDS_MAX || self.writes_bytes >= GROUP_BYTES_MAX;
                // Values of unknown size are answered one at a time.
                if is_full || answers_value {
                    self.commit_writes().await?;
                }
            }
            Run::Read(read) => {
                self.commit_writes().await?;
                let mut view = match request.len() {
                    0..=2 => View::of(&self.server.db),
                    _ => View::of_one_moment(&self.server.db),
                };
                let before = self.out.len();
                if let Err(refusal) = read(&mut view, &request, &mut self.out) {
                    self.out.truncate(before);
                    refusal.write(&mut self.out);
                }
            }
            Run::Connection(action) | Run::Streamed(action, _) => {
                self.commit_writes().await?;
                match self.act(action, &request).await {
                    Err(Stop::Refused(refusal)) => refusal.write(&mut self.out),
                    outcome => outcome?,
                }
            }
        }
        Ok(())
    }

    /// Whether a request may be carried out now, and what it asks for.
    fn admit(&self, request: &Request) -> Result<&'static Command, Refusal> {
        let command = command::find(request.name());
        if !self.is_authenticated && !command.is_some_and(|command| command.for_strangers) {
            return Err(Refusal::new("NOAUTH Authentication required."));
        }
        let command = command.ok_or_else(|| unknown(request))?;
        command.check(request)?;
        let listens = self.subscribed.len() > 0 && self.out.protocol() == Protocol::Resp2;
        if listens && !command.while_subscribed {
            let name = command.lower_name();
            return Err(Refusal::new(format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET \
                 are allowed in this context"
            )));
        }
        if self.multi.is_some() && command.in_multi == InMulti::Refused {
            let name = command.lower_name();
            return Err(Refusal::new(format!(
                "ERR Command '{name}' is not allowed inside a transaction"
            )));
        }
        Ok(command)
    }

    async fn refuse(&mut self, refusal: &Refusal) -> Result<(), Stop> {
        self.commit_writes().await?;
        refusal.write(&mut self.out);
        Ok(())
    }

    async fn act(&mut self, action: Action, request: &Request) -> Result<(), Stop> {
        // What takes long is boxed, so that connections that do nothing stay small.
        match action {
            Action::Exec => Box::pin(self.exec()).await,
            Action::MGet => Box::pin(self.mget(request)).await,
            Action::Scan => Box::pin(self.scan(request)).await,
            Action::Keys => Box::pin(self.keys(request)).await,
            Action::Range => Box::pin(self.range(request)).await,
            Action::DbSize => Box::pin(self.dbsize()).await,
            Action::FlushAll => Box::pin(self.flushall(request)).await,
            Action::Wait => Box::pin(self.wait_for_replicas(request)).await,
            Action::Conflicts
            | Action::Siblings
            | Action::Sync
            | Action::Pause
            | Action::Resume
            | Action::AddPeer
            | Action::DropPeer
            | Action::Retire
            | Action::Digest
            | Action::Status
            | Action::Peers => Box::pin(self.replicate(action, request)).await,
            Action::Changes => Box::pin(self.changes(request)).await,
            Action::Backup => Box::pin(self.backup(request)).await,
            Action::Verify => Box::pin(self.verify()).await,
            at_once => {
                let mut out = std::mem::take(&mut self.out);
                let before = out.len();
                let outcome = self.answer(at_once, request, &mut out);
                if outcome.is_err() {
                    out.truncate(before);
                }
                self.out = out;
                Ok(outcome?)
            }
        }
    }

    /// What needs neither the writer nor time.
    fn answer(
        &mut self,
        action: Action,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Result<(), Refusal> {
        match action {
            Action::Multi => self.multi(out),
            Action::Discard => self.discard(out),
            Action::Watch => self.watch(request, out),
            Action::Unwatch => {
                self.forget_watches();
                out.simple("OK");
                Ok(())
            }
            Action::Subscribe | Action::PSubscribe | Action::Unsubscribe | Action::PUnsubscribe => {
                self.change_subscriptions(action, request, out)
            }
            Action::Client | Action::Command | Action::Config | Action::Info | Action::Time => {
                self.inform(action, request, out)
            }
            other => self.answer_for_session(other, request, out),
        }
    }

    /// Hands the writes over that were collected, and waits for their replies.
    async fn commit_writes(&mut self) -> Result<(), Stop> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let writes = std::mem::take(&mut self.writes);
        self.writes_bytes = 0;
        self.hand_over(writes).await
    }

    async fn hand_over(&mut self, units: Vec<Unit>) -> Result<(), Stop> {
        let protocol = self.out.protocol();
        let written = self.server.writer.submit(units, protocol).await;
        let written = written.map_err(|_| Stop::Ended)?;
        self.out.append(written.replies);
        self.last_dot = written.dot;
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let server = &self.server;
        server
            .waiting_bytes
            .set(server.waiting_bytes.get() - self.charged);
        server.clients.borrow_mut().remove(&self.client.id);
        let mut subscriptions = server.subscriptions.borrow_mut();
        subscriptions.remove_all(&self.client, &mut self.subscribed);
    }
}

/// As Redis says it, with what fits a line.
fn unknown(request: &Request) -> Refusal {
    const QUOTED_BYTES_MAX: usize = 128;
    let name = &request.name()[..request.name().len().min(QUOTED_BYTES_MAX)];
    let mut quoted = String::new();
    for argument in request.arguments_from(1) {
        if quoted.len() >= QUOTED_BYTES_MAX {
            break;
        }
        let room = QUOTED_BYTES_MAX - quoted.len();
        let argument = String::from_utf8_lossy(&argument[..argument.len().min(room)]);
        quoted.push_str(&format!("'{argument}' "));
    }
    Refusal::new(format!(
        "ERR unknown command '{}', with args beginning with: {quoted}",
        String::from_utf8_lossy(name)
    ))
}
