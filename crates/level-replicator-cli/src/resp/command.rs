//! What a command is: its name, what it takes, who carries it out, and a line of help.
//!
//! The rule: the [`table`] is the only place that knows this of each. Dispatch, errors of arity, checks of keys, what may
//! stand in a `MULTI`, and `COMMAND` all read it.

mod expiry;
mod keys;
mod strings;
mod table;

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::resp::edit::{Edit, Source, check_key};
use crate::resp::refusal::Refusal;
use crate::resp::reply::ReplyWriter;
use crate::resp::request::Request;

pub(crate) use table::COMMANDS;

pub(crate) type ReadFn = fn(&mut dyn Source, &Request, &mut ReplyWriter) -> Result<(), Refusal>;
pub(crate) type WriteFn = fn(&mut Edit<'_>, &Request, &mut ReplyWriter) -> Result<(), Refusal>;

/// Longest name of a command, for looking it up.
const NAME_BYTES_MAX: usize = 20;

/// Who carries a command out.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// The connection's task, reading the database.
    Read(ReadFn),
    /// The writer, in a transaction that it shares with other commands.
    Write(WriteFn),
    /// The connection.
    Connection(Action),
    /// The connection, which sends the reply while it is read; in a transaction, as any read.
    Streamed(Action, ReadFn),
}

/// What a connection does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Ping,
    Echo,
    Hello,
    Auth,
    Select,
    Client,
    Command,
    Config,
    Info,
    DbSize,
    Time,
    Quit,
    Reset,
    MGet,
    Scan,
    Keys,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Subscribe,
    PSubscribe,
    Unsubscribe,
    PUnsubscribe,
    Wait,
    FlushAll,
    Range,
    Siblings,
    Conflicts,
    Sync,
    Pause,
    Resume,
    AddPeer,
    DropPeer,
    Retire,
    Digest,
    Status,
    Peers,
    Changes,
    Backup,
    Verify,
}

/// What follows from a command's being in a `MULTI`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InMulti {
    /// It waits for `EXEC`.
    Queued,
    /// It is carried out at once.
    AtOnce,
    /// It is refused: it would have to wait, or reads more than a transaction can hold.
    Refused,
}

/// Which arguments are keys: the first, the last (negative: from the end), and each how manieth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyPlaces {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) step: i64,
}

const NONE: KeyPlaces = KeyPlaces {
    first: 0,
    last: 0,
    step: 0,
};
const ONE: KeyPlaces = KeyPlaces {
    first: 1,
    last: 1,
    step: 1,
};
const ALL: KeyPlaces = KeyPlaces {
    first: 1,
    last: -1,
    step: 1,
};
const PAIRS: KeyPlaces = KeyPlaces {
    first: 1,
    last: -1,
    step: 2,
};

/// One command.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// Arguments with the name; negative: at least so many.
    pub(crate) arity: i64,
    pub(crate) run: Run,
    pub(crate) keys: KeyPlaces,
    pub(crate) in_multi: InMulti,
    /// Whether it is answered before the password was said.
    pub(crate) for_strangers: bool,
    /// Whether it is answered while a connection of RESP 2 is subscribed.
    pub(crate) while_subscribed: bool,
    /// Whether its reply always holds a value.
    answers_value: bool,
    /// Whether it must not follow other writes in one transaction, because it asks what stood before.
    pub(crate) stands_first: bool,
    pub(crate) summary: &'static str,
}

impl Command {
    const fn new(
        name: &'static str,
        arity: i64,
        run: Run,
        keys: KeyPlaces,
        summary: &'static str,
    ) -> Command {
        let in_multi = match run {
            Run::Connection(_) => InMulti::Refused,
            _ => InMulti::Queued,
        };
        Command {
            name,
            arity,
            run,
            keys,
            in_multi,
            for_strangers: false,
            while_subscribed: false,
            answers_value: false,
            stands_first: false,
            summary,
        }
    }

    const fn read(
        name: &'static str,
        arity: i64,
        keys: KeyPlaces,
        run: ReadFn,
        summary: &'static str,
    ) -> Command {
        Command::new(name, arity, Run::Read(run), keys, summary)
    }

    const fn write(
        name: &'static str,
        arity: i64,
        keys: KeyPlaces,
        run: WriteFn,
        summary: &'static str,
    ) -> Command {
        Command::new(name, arity, Run::Write(run), keys, summary)
    }

    const fn own(name: &'static str, arity: i64, action: Action, summary: &'static str) -> Command {
        Command::new(name, arity, Run::Connection(action), NONE, summary)
    }

    const fn queued(mut self) -> Command {
        self.in_multi = InMulti::Queued;
        self
    }

    const fn at_once(mut self) -> Command {
        self.in_multi = InMulti::AtOnce;
        self
    }

    const fn for_strangers(mut self) -> Command {
        self.for_strangers = true;
        self
    }

    const fn while_subscribed(mut self) -> Command {
        self.while_subscribed = true;
        self
    }

    const fn with_value(mut self) -> Command {
        self.answers_value = true;
        self
    }

    const fn stands_first(mut self) -> Command {
        self.stands_first = true;
        self.in_multi = InMulti::Refused;
        self
    }

    const fn with_keys(mut self, keys: KeyPlaces) -> Command {
        self.keys = keys;
        self
    }

    /// The name in small letters, as errors and `COMMAND` have it.
    pub(crate) fn lower_name(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Whether a request has a fitting number of arguments, and keys that can be keys.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let len = i64::try_from(request.len()).unwrap_or(i64::MAX);
        let fits = if self.arity >= 0 {
            len == self.arity
        } else {
            len >= -self.arity
        };
        if !fits {
            let name = self.lower_name();
            return Err(Refusal::new(format!(
                "ERR wrong number of arguments for '{name}' command"
            )));
        }
        self.keys_of(request).try_for_each(check_key)
    }

    /// The keys among the arguments of a request.
    pub(crate) fn keys_of<'a>(&self, request: &'a Request) -> impl Iterator<Item = &'a [u8]> {
        let KeyPlaces { first, last, step } = self.keys;
        let last = match last {
            last if last < 0 => request.len().saturating_add_signed(last as isize),
            last => last as usize,
        };
        let count = if first == 0 {
            0
        } else {
            (last + 1).saturating_sub(first as usize)
        };
        request
            .arguments_from(first as usize)
            .take(count)
            .step_by((step as usize).max(1))
    }

    /// Whether the reply to a request holds a value, which may be large.
    pub(crate) fn answers_value(&self, request: &Request) -> bool {
        let is_set_get = || {
            let mut options = request.arguments_from(3);
            self.name == "SET" && options.any(|option| option.eq_ignore_ascii_case(b"GET"))
        };
        self.answers_value || is_set_get()
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self.run, Run::Write(_) | Run::Connection(Action::FlushAll))
    }

    /// What `COMMAND` says of it.
    pub(crate) fn flags(&self) -> Vec<&'static str> {
        let mut flags = Vec::new();
        match self.run {
            _ if self.is_write() => flags.push("write"),
            Run::Read(_) | Run::Streamed(..) => flags.push("readonly"),
            _ => {}
        }
        if self.keys == ONE {
            flags.push("fast");
        }
        if self.in_multi == InMulti::Refused {
            flags.push("no_multi");
        }
        if self.for_strangers {
            flags.push("no_auth");
        }
        flags
    }

    /// The heading under which help shows it.
    pub(crate) fn group(&self) -> &'static str {
        match self.keys {
            _ if self.name.starts_with("LR.") => "replication",
            NONE => "server",
            _ => "generic",
        }
    }
}

/// The command of a name, in capitals or not.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    static BY_NAME: OnceLock<HashMap<&'static [u8], &'static Command>> = OnceLock::new();
    let by_name = BY_NAME.get_or_init(|| {
        let entries = COMMANDS.iter();
        entries
            .map(|command| (command.name.as_bytes(), command))
            .collect()
    });
    let mut upper = [0; NAME_BYTES_MAX];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    by_name.get(&*upper).copied()
}
