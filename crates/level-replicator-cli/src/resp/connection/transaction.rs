//! `MULTI`, `EXEC`, `DISCARD`, `WATCH`, `UNWATCH`.
//!
//! The rule: an `EXEC` is one transaction. What it reads is the state at `EXEC` with its own writes, and nothing of it is
//! written if a watched key has another write than when it was watched. A key that was absent, and was written and
//! deleted again since, counts as unchanged.

use level_replicator::Sibling;

use crate::resp::command::{Command, Run};
use crate::resp::connection::{Connection, Stop};
use crate::resp::options::{QUEUED_COMMANDS_MAX, TRANSACTION_BYTES_MAX, WATCHES_MAX};
use crate::resp::refusal::Refusal;
use crate::resp::reply::ReplyWriter;
use crate::resp::request::Request;
use crate::resp::writer::{Exec, Queued, Unit, Watch};

/// What was said since `MULTI`.
#[derive(Default)]
pub(super) struct Multi {
    queue: Vec<(&'static Command, Request)>,
    bytes: usize,
    /// Whether something was said that cannot be carried out, so that `EXEC` does nothing.
    pub(super) is_refused: bool,
}

impl Multi {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(
        &mut self,
        command: &'static Command,
        request: Request,
    ) -> Result<(), Refusal> {
        let bytes = self.bytes + request.size();
        if self.queue.len() >= QUEUED_COMMANDS_MAX || bytes > TRANSACTION_BYTES_MAX {
            self.is_refused = true;
            return Err(Refusal::new(format!(
                "ERR transaction of more than {QUEUED_COMMANDS_MAX} commands or {TRANSACTION_BYTES_MAX} bytes"
            )));
        }
        self.bytes = bytes;
        self.queue.push((command, request));
        Ok(())
    }
}

impl Connection {
    pub(super) fn multi(&mut self, out: &mut ReplyWriter) -> Result<(), Refusal> {
        if self.multi.is_some() {
            return Err(Refusal::new("ERR MULTI calls can not be nested"));
        }
        self.multi = Some(Multi::default());
        self.client.queued.set(Some(0));
        out.simple("OK");
        Ok(())
    }

    pub(super) fn discard(&mut self, out: &mut ReplyWriter) -> Result<(), Refusal> {
        if self.multi.is_none() {
            return Err(Refusal::new("ERR DISCARD without MULTI"));
        }
        self.forget_transaction();
        out.simple("OK");
        Ok(())
    }

    pub(super) async fn exec(&mut self) -> Result<(), Stop> {
        let Some(multi) = self.multi.take() else {
            return Err(Refusal::new("ERR EXEC without MULTI").into());
        };
        let watches = std::mem::take(&mut self.watches);
        self.forget_transaction();
        if multi.is_refused {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Err(Refusal::new(text).into());
        }
        let bytes = multi.bytes;
        let commands = multi.queue.into_iter();
        let commands = commands
            .map(|(command, request)| match command.run {
                Run::Write(write) => Queued::Write(write, request),
                Run::Read(read) | Run::Streamed(_, read) => Queued::Read(read, request),
                Run::Connection(action) => {
                    let mut out = ReplyWriter::new(self.out.protocol());
                    if let Err(refusal) = self.answer(action, &request, &mut out) {
                        out.clear();
                        refusal.write(&mut out);
                    }
                    Queued::Answered(out.take())
                }
            })
            .collect();
        let exec = Exec {
            commands,
            watches,
            bytes,
        };
        self.hand_over(vec![Unit::Exec(exec)]).await
    }

    pub(super) fn watch(
        &mut self,
        request: &Request,
        out: &mut ReplyWriter,
    ) -> Result<(), Refusal> {
        if self.multi.is_some() {
            return Err(Refusal::new("ERR WATCH inside MULTI is not allowed"));
        }
        for key in request.arguments_from(1) {
            if self.watches.len() >= WATCHES_MAX {
                return Err(Refusal::new(format!(
                    "ERR more than {WATCHES_MAX} keys are watched"
                )));
            }
            if self.watches.iter().any(|watch| watch.key == key) {
                continue;
            }
            let siblings = self.server.db.siblings(key)?;
            let dot = |sibling: &Sibling| sibling.dot;
            self.watches.push(Watch {
                key: key.to_vec(),
                dots: siblings.iter().map(dot).collect(),
            });
        }
        self.client.watches.set(self.watches.len());
        out.simple("OK");
        Ok(())
    }

    pub(super) fn forget_watches(&mut self) {
        self.watches = Vec::new();
        self.client.watches.set(0);
    }

    pub(super) fn forget_transaction(&mut self) {
        self.multi = None;
        self.client.queued.set(None);
        self.forget_watches();
    }
}
