//! Group commit: the writes of all connections, in the order in which they came, as few transactions.
//!
//! The rule: a client gets the reply to its write after the commit that holds it, and an error only if its own command
//! is at fault. A group that fails is carried out again one command at a time, so that only the culprit is refused.
//!
//! All connections are tasks of one thread. Those that became readable run before the writer, which was queued behind
//! them, so that what fifty clients sent at once is one commit, and with `Durability::Sync` one fsync.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use level_replicator::{Db, Dot, Durability, Error, Transaction};
use tokio::sync::{Notify, oneshot};

use crate::resp::command::{ReadFn, WriteFn};
use crate::resp::edit::Edit;
use crate::resp::options::{
    GROUP_BYTES_MAX, GROUP_COMMANDS_MAX, GROUP_WORK_MAX, INLINE_COMMIT_BYTES_MAX,
};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{Protocol, ReplyWriter};
use crate::resp::request::Request;

/// Something that is carried out in one transaction.
pub(crate) enum Unit {
    /// One command.
    Write {
        write: WriteFn,
        request: Request,
        /// Whether it must not follow other writes in the same transaction.
        stands_first: bool,
    },
    /// What a `MULTI` queued.
    Exec(Exec),
}

/// What a `MULTI` queued, and what must not have changed since.
pub(crate) struct Exec {
    pub(crate) commands: Vec<Queued>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) bytes: usize,
}

/// One command of a transaction.
pub(crate) enum Queued {
    Write(WriteFn, Request),
    Read(ReadFn, Request),
    /// Its reply is known already, for it depends on nothing.
    Answered(Vec<u8>),
}

/// A key that is watched, and the writes that stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) key: Vec<u8>,
    pub(crate) dots: Vec<Dot>,
}

/// The replies to what one connection handed over, and the last write that is known then.
pub(crate) struct Written {
    pub(crate) replies: Vec<u8>,
    pub(crate) dot: Option<Dot>,
}

/// Units of one connection, under way.
struct Submission {
    units: Vec<Unit>,
    replies: ReplyWriter,
    done: oneshot::Sender<Written>,
}

/// Takes writes from connections and commits them.
pub(crate) struct Writer {
    queue: RefCell<VecDeque<Submission>>,
    arrived: Notify,
    durability: Durability,
    value_bytes_max: usize,
    /// The first write of an open may wait for a conversation with a peer.
    has_committed: Cell<bool>,
}

impl Writer {
    pub(crate) fn new(durability: Durability, value_bytes_max: usize) -> Writer {
        Writer {
            queue: RefCell::default(),
            arrived: Notify::new(),
            durability,
            value_bytes_max,
            has_committed: Cell::new(false),
        }
    }

    /// Hands units over. The replies come when they are committed; never, if the server stops before.
    pub(crate) fn submit(
        &self,
        units: Vec<Unit>,
        protocol: Protocol,
    ) -> oneshot::Receiver<Written> {
        let (done, replies) = oneshot::channel();
        self.queue.borrow_mut().push_back(Submission {
            units,
            replies: ReplyWriter::new(protocol),
            done,
        });
        self.arrived.notify_one();
        replies
    }

    /// Commits what is handed over, for ever.
    pub(crate) async fn run(&self, db: &Db) {
        loop {
            let Some(group) = self.take_group() else {
                self.arrived.notified().await;
                continue;
            };
            let waits = self.durability == Durability::Sync
                || !self.has_committed.get()
                || group.bytes > INLINE_COMMIT_BYTES_MAX;
            let group = if waits {
                let db = db.clone();
                match tokio::task::spawn_blocking(move || group.carry_out(&db)).await {
                    Ok(group) => group,
                    // A bug: its connections see their channels closed and end.
                    Err(_) => continue,
                }
            } else {
                group.carry_out(db)
            };
            self.has_committed.set(true);
            let dot = db.last_dot();
            for submission in group.submissions {
                let mut replies = submission.replies;
                // A connection that is gone needs no reply.
                let _ = submission.done.send(Written {
                    replies: replies.take(),
                    dot,
                });
            }
        }
    }

    /// What waits, up to the bounds of a group.
    fn take_group(&self) -> Option<Group> {
        let mut queue = self.queue.borrow_mut();
        let mut group = Group {
            submissions: Vec::new(),
            value_bytes_max: self.value_bytes_max,
            bytes: 0,
        };
        let mut commands = 0;
        while let Some(next) = queue.front() {
            let bytes: usize = next.units.iter().map(Unit::bytes).sum();
            let has_room = commands + next.units.len() <= GROUP_COMMANDS_MAX
                && group.bytes + bytes <= GROUP_BYTES_MAX;
            if !group.submissions.is_empty() && !has_room {
                break;
            }
            commands += next.units.len();
            group.bytes += bytes;
            group.submissions.extend(queue.pop_front());
        }
        (!group.submissions.is_empty()).then_some(group)
    }
}

impl Unit {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Unit::Write { request, .. } => request.size(),
            Unit::Exec(exec) => exec.bytes,
        }
    }

    fn stands_first(&self) -> bool {
        match self {
            Unit::Write { stands_first, .. } => *stands_first,
            Unit::Exec(exec) => !exec.watches.is_empty(),
        }
    }

    /// An error gives up the transaction; a refusal of a single command is its reply.
    fn carry_out(&self, edit: &mut Edit<'_>, out: &mut ReplyWriter) -> Result<(), Error> {
        match self {
            Unit::Write { write, request, .. } => answered(out, |out| write(edit, request, out)),
            Unit::Exec(exec) => exec.carry_out(edit, out),
        }
    }
}

impl Exec {
    fn carry_out(&self, edit: &mut Edit<'_>, out: &mut ReplyWriter) -> Result<(), Error> {
        for watch in &self.watches {
            match edit.siblings(&watch.key) {
                Ok(siblings)
                    if siblings
                        .iter()
                        .map(|s| s.dot)
                        .eq(watch.dots.iter().copied()) => {}
                Ok(_) => {
                    out.null_array();
                    return Ok(());
                }
                Err(refusal) => return answered(out, |_| Err(refusal)),
            }
        }
        out.array(self.commands.len());
        for command in &self.commands {
            let before = out.len();
            match command {
                Queued::Write(write, request) => answered(out, |out| write(edit, request, out))?,
                Queued::Read(read, request) => answered(out, |out| read(edit, request, out))?,
                Queued::Answered(reply) => out.extend(reply),
            }
            // All replies are in memory until the commit.
            if let Err(Refusal::GiveUp(error)) = edit.count(out.len() - before) {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Writes what a command answers, or why it was refused.
fn answered(
    out: &mut ReplyWriter,
    run: impl FnOnce(&mut ReplyWriter) -> Result<(), Refusal>,
) -> Result<(), Error> {
    let before = out.len();
    match run(out) {
        Ok(()) => Ok(()),
        Err(Refusal::GiveUp(error)) => Err(error),
        Err(refusal) => {
            out.truncate(before);
            refusal.write(out);
            Ok(())
        }
    }
}

/// What is committed together, if all goes well.
struct Group {
    submissions: Vec<Submission>,
    value_bytes_max: usize,
    bytes: usize,
}

/// A unit of a group: which submission, and which of its units.
type Place = (usize, usize);

impl Group {
    /// Carries all of it out, in one transaction or in as many as it takes.
    fn carry_out(mut self, db: &Db) -> Group {
        let submissions = self.submissions.iter().enumerate();
        let places: Vec<Place> = submissions
            .flat_map(|(at, submission)| (0..submission.units.len()).map(move |unit| (at, unit)))
            .collect();
        let mut from = 0;
        // Up to here each unit is carried out alone.
        let mut alone_until = 0;
        while from < places.len() {
            let upto = if from < alone_until {
                from + 1
            } else {
                places.len()
            };
            match self.attempt(db, &places[from..upto]) {
                Ok(count) => from += count,
                Err(Failed { count, error }) if count > 1 && is_of_one_unit(&error) => {
                    alone_until = from + count;
                }
                Err(Failed { count, error }) => {
                    for &(at, _) in &places[from..from + count] {
                        let text = format!("ERR {error}");
                        self.submissions[at].replies.error(&text);
                    }
                    from += count;
                }
            }
        }
        self
    }

    /// Tries units in one transaction; answers how many were committed. It may be fewer, but at least one.
    fn attempt(&mut self, db: &Db, places: &[Place]) -> Result<usize, Failed> {
        let marks: Vec<usize> = self.submissions.iter().map(|s| s.replies.len()).collect();
        let mut count = 0;
        let outcome = db.transact(|transaction| {
            self.forget_replies(&marks);
            count = 0;
            self.run_units(transaction, places, &mut count)
        });
        outcome.map(|()| count).map_err(|error| {
            self.forget_replies(&marks);
            Failed {
                count: count.max(1),
                error,
            }
        })
    }

    fn run_units(
        &mut self,
        transaction: &mut Transaction,
        places: &[Place],
        count: &mut usize,
    ) -> Result<(), Error> {
        let mut edit = Edit::new(transaction, self.value_bytes_max);
        for &(at, unit) in places {
            let Submission { units, replies, .. } = &mut self.submissions[at];
            let is_first = *count == 0;
            if !is_first && (units[unit].stands_first() || edit.work() > GROUP_WORK_MAX) {
                break;
            }
            *count += 1;
            units[unit].carry_out(&mut edit, replies)?;
        }
        Ok(())
    }

    fn forget_replies(&mut self, marks: &[usize]) {
        for (submission, mark) in self.submissions.iter_mut().zip(marks) {
            submission.replies.truncate(*mark);
        }
    }
}

/// A transaction that failed, and how many units it held.
struct Failed {
    count: usize,
    error: Error,
}

/// Whether the others of a group can be carried out without the one at fault. What is in place already must not be
/// written again, and an engine that failed fails for all.
fn is_of_one_unit(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotDurable(_) | Error::Closed | Error::Storage(_)
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use level_replicator::Options;
    use tempfile::TempDir;

    use super::*;
    use crate::resp::command;
    use crate::resp::command::Run;
    use crate::resp::edit::Source;
    use crate::resp::request::{Bounds, RequestReader};

    fn open() -> (TempDir, Db) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = Options::new().open(directory.path()).expect("it opens");
        (directory, db)
    }

    fn request(line: &str) -> Request {
        let mut reader = RequestReader::new(Bounds::stranger());
        reader
            .buffer()
            .extend_from_slice(format!("{line}\r\n").as_bytes());
        let request = reader.next_request().expect("it is a request");
        request.expect("it is whole")
    }

    fn write_fn(line: &str) -> WriteFn {
        match command::find(request(line).name()).map(|command| command.run) {
            Some(Run::Write(write)) => write,
            _ => panic!("{line} writes nothing"),
        }
    }

    fn unit(line: &str) -> Unit {
        unit_of(write_fn(line), line)
    }

    fn unit_of(write: WriteFn, line: &str) -> Unit {
        Unit::Write {
            write,
            request: request(line),
            stands_first: false,
        }
    }

    fn exec(watches: Vec<Watch>, line: &str) -> Unit {
        Unit::Exec(Exec {
            commands: vec![Queued::Write(write_fn(line), request(line))],
            watches,
            bytes: 0,
        })
    }

    /// Carries out a unit of each of several connections as one group; answers their replies.
    fn carry_out(db: &Db, units: Vec<Unit>) -> Vec<String> {
        let submission = |unit| Submission {
            units: vec![unit],
            replies: ReplyWriter::new(Protocol::Resp2),
            done: oneshot::channel().0,
        };
        let group = Group {
            submissions: units.into_iter().map(submission).collect(),
            value_bytes_max: 100,
            bytes: 0,
        };
        let submissions = group.carry_out(db).submissions;
        let text = |submission: &Submission| {
            String::from_utf8_lossy(submission.replies.bytes()).into_owned()
        };
        submissions.iter().map(text).collect()
    }

    fn give_up(edit: &mut Edit<'_>, request: &Request, _: &mut ReplyWriter) -> Result<(), Refusal> {
        edit.put(request.argument(1), b"half")?;
        Err(Refusal::GiveUp(Error::aborted("no")))
    }

    #[test]
    fn only_the_culprit_of_a_group_that_fails_is_refused() {
        let (_directory, db) = open();
        let units = vec![
            unit("SET a 1"),
            unit_of(give_up, "SET a 2"),
            unit("APPEND a 3"),
            unit(&format!("SET b {}", "v".repeat(101))),
            unit("SETNX a 4"),
        ];
        let replies = carry_out(&db, units);
        assert_eq!(replies[0], "+OK\r\n");
        assert_eq!(replies[1], "-ERR transaction was aborted: no\r\n");
        assert_eq!(replies[2], ":2\r\n");
        assert_eq!(
            replies[3],
            "-ERR value of 101 bytes exceeds the limit of 100\r\n"
        );
        assert_eq!(replies[4], ":0\r\n");
        assert_eq!(
            db.get("a").expect("it can be read").as_deref(),
            Some(&b"13"[..])
        );
    }

    #[test]
    fn a_watch_sees_what_others_of_its_group_wrote_before() {
        let (_directory, db) = open();
        let watch = || {
            vec![Watch {
                key: b"a".to_vec(),
                dots: Vec::new(),
            }]
        };
        let unchanged = carry_out(&db, vec![unit("SET b 1"), exec(watch(), "SET c 1")]);
        assert_eq!(unchanged, ["+OK\r\n", "*1\r\n+OK\r\n"]);
        let changed = carry_out(&db, vec![unit("SET a 1"), exec(watch(), "SET d 1")]);
        assert_eq!(changed, ["+OK\r\n", "*-1\r\n"]);
        assert_eq!(db.get("d").expect("it can be read"), None);
    }

    thread_local! {
        /// Another writer, who comes between once.
        static INTRUDER: RefCell<Option<Db>> = const { RefCell::new(None) };
    }

    fn meet_another(
        edit: &mut Edit<'_>,
        _: &Request,
        out: &mut ReplyWriter,
    ) -> Result<(), Refusal> {
        let seen = edit.get(b"a")?;
        if let Some(db) = INTRUDER.take() {
            db.put("a", "theirs")?;
        }
        edit.put(b"b", b"ours")?;
        out.bulk_or_null(seen);
        Ok(())
    }

    #[test]
    fn a_group_that_met_another_writer_answers_once_and_what_is_true() {
        let (_directory, db) = open();
        INTRUDER.set(Some(db.clone()));
        let replies = carry_out(&db, vec![unit("SET c 1"), unit_of(meet_another, "x")]);
        assert_eq!(replies, ["+OK\r\n", "$6\r\ntheirs\r\n"]);
    }
}
