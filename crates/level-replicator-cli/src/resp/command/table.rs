//! All commands.

use super::{ALL, Action, Command, ONE, PAIRS, Run, expiry, keys, strings};

/// All commands.
pub(crate) static COMMANDS: &[Command] = &[
    Command::own("PING", -1, Action::Ping, "answers PONG, or its argument")
        .queued()
        .while_subscribed(),
    Command::own("ECHO", 2, Action::Echo, "answers its argument").queued(),
    Command::own(
        "HELLO",
        -1,
        Action::Hello,
        "chooses the version of the protocol, and can say the password",
    )
    .for_strangers(),
    Command::own("AUTH", -2, Action::Auth, "says the password").for_strangers(),
    Command::own("SELECT", 2, Action::Select, "chooses the only database, 0").queued(),
    Command::own("CLIENT", -2, Action::Client, "names and shows connections"),
    Command::own(
        "COMMAND",
        -1,
        Action::Command,
        "tells what commands there are",
    )
    .queued(),
    Command::own(
        "CONFIG",
        -2,
        Action::Config,
        "answers that there is nothing to configure here",
    )
    .queued(),
    Command::own("INFO", -1, Action::Info, "tells how the server is").queued(),
    Command::own("DBSIZE", 1, Action::DbSize, "counts the keys"),
    Command::own("TIME", 1, Action::Time, "tells the server's time").queued(),
    Command::own("QUIT", -1, Action::Quit, "ends the connection")
        .for_strangers()
        .while_subscribed()
        .at_once(),
    Command::own("RESET", 1, Action::Reset, "makes the connection as new")
        .for_strangers()
        .while_subscribed()
        .at_once(),
    Command::read("GET", 2, ONE, strings::get, "reads a value"),
    Command::new(
        "MGET",
        -2,
        Run::Streamed(Action::MGet, strings::mget),
        ALL,
        "reads several values at one moment",
    ),
    Command::write("SET", -3, ONE, strings::set, "writes a value"),
    Command::write(
        "SETNX",
        3,
        ONE,
        strings::setnx,
        "writes a value if there is none",
    ),
    Command::write(
        "SETEX",
        4,
        ONE,
        strings::setex,
        "writes a value that expires in seconds",
    ),
    Command::write(
        "PSETEX",
        4,
        ONE,
        strings::psetex,
        "writes a value that expires in milliseconds",
    ),
    Command::write(
        "GETSET",
        3,
        ONE,
        strings::getset,
        "writes a value and answers the one before",
    )
    .with_value(),
    Command::write(
        "GETDEL",
        2,
        ONE,
        strings::getdel,
        "answers a value and deletes it",
    )
    .with_value(),
    Command::write(
        "GETEX",
        -2,
        ONE,
        strings::getex,
        "answers a value and sets when it expires",
    )
    .with_value(),
    Command::write(
        "MSET",
        -3,
        PAIRS,
        strings::mset,
        "writes several values as one",
    ),
    Command::write("APPEND", 3, ONE, strings::append, "appends to a value"),
    Command::read(
        "STRLEN",
        2,
        ONE,
        strings::strlen,
        "tells the length of a value",
    ),
    Command::write(
        "INCR",
        2,
        ONE,
        strings::no_counters,
        "refused: concurrent increments would be lost",
    ),
    Command::write(
        "DECR",
        2,
        ONE,
        strings::no_counters,
        "refused: concurrent increments would be lost",
    ),
    Command::write(
        "INCRBY",
        3,
        ONE,
        strings::no_counters,
        "refused: concurrent increments would be lost",
    ),
    Command::write(
        "DECRBY",
        3,
        ONE,
        strings::no_counters,
        "refused: concurrent increments would be lost",
    ),
    Command::write(
        "INCRBYFLOAT",
        3,
        ONE,
        strings::no_counters,
        "refused: concurrent increments would be lost",
    ),
    Command::write("DEL", -2, ALL, keys::del, "deletes keys"),
    Command::write("UNLINK", -2, ALL, keys::del, "deletes keys"),
    Command::read(
        "EXISTS",
        -2,
        ALL,
        keys::exists,
        "counts the keys that are there",
    ),
    Command::read(
        "TYPE",
        2,
        ONE,
        keys::type_of,
        "tells whether a key has a value",
    ),
    Command::write(
        "EXPIRE",
        -3,
        ONE,
        expiry::expire,
        "lets a value expire in seconds",
    ),
    Command::write(
        "PEXPIRE",
        -3,
        ONE,
        expiry::pexpire,
        "lets a value expire in milliseconds",
    ),
    Command::write(
        "EXPIREAT",
        -3,
        ONE,
        expiry::expireat,
        "lets a value expire at a second since 1970",
    ),
    Command::write(
        "PEXPIREAT",
        -3,
        ONE,
        expiry::pexpireat,
        "lets a value expire at a millisecond since 1970",
    ),
    Command::write("PERSIST", 2, ONE, expiry::persist, "lets a value stay"),
    Command::read(
        "TTL",
        2,
        ONE,
        expiry::ttl,
        "tells in how many seconds a value expires",
    ),
    Command::read(
        "PTTL",
        2,
        ONE,
        expiry::pttl,
        "tells in how many milliseconds a value expires",
    ),
    Command::read(
        "EXPIRETIME",
        2,
        ONE,
        expiry::expiretime,
        "tells at which second a value expires",
    ),
    Command::read(
        "PEXPIRETIME",
        2,
        ONE,
        expiry::pexpiretime,
        "tells at which millisecond a value expires",
    ),
    Command::own(
        "SCAN",
        -2,
        Action::Scan,
        "goes through all keys in order, some at a time",
    ),
    Command::own(
        "KEYS",
        2,
        Action::Keys,
        "finds the keys that match a pattern",
    ),
    Command::own("MULTI", 1, Action::Multi, "begins a transaction").at_once(),
    Command::own("EXEC", 1, Action::Exec, "carries out a transaction as one").at_once(),
    Command::own("DISCARD", 1, Action::Discard, "gives up a transaction").at_once(),
    Command::own(
        "WATCH",
        -2,
        Action::Watch,
        "lets EXEC do nothing if a key has changed",
    )
    .with_keys(ALL)
    .at_once(),
    Command::own(
        "UNWATCH",
        1,
        Action::Unwatch,
        "forgets the keys that are watched",
    )
    .queued(),
    Command::own("SUBSCRIBE", -2, Action::Subscribe, "listens to channels").while_subscribed(),
    Command::own(
        "PSUBSCRIBE",
        -2,
        Action::PSubscribe,
        "listens to channels that match patterns",
    )
    .while_subscribed(),
    Command::own(
        "UNSUBSCRIBE",
        -1,
        Action::Unsubscribe,
        "listens to channels no more",
    )
    .while_subscribed(),
    Command::own(
        "PUNSUBSCRIBE",
        -1,
        Action::PUnsubscribe,
        "listens to patterns no more",
    )
    .while_subscribed(),
    Command::own(
        "WAIT",
        3,
        Action::Wait,
        "waits until other replicas have what this connection wrote",
    ),
    Command::own(
        "FLUSHALL",
        -1,
        Action::FlushAll,
        "deletes all keys, on all replicas",
    ),
    Command::own(
        "FLUSHDB",
        -1,
        Action::FlushAll,
        "deletes all keys, on all replicas",
    ),
    Command::own(
        "LR.RANGE",
        -3,
        Action::Range,
        "reads keys and values of a range in order",
    ),
    Command::own(
        "LR.SIBLINGS",
        2,
        Action::Siblings,
        "reads the concurrent values of a key",
    )
    .with_keys(ONE),
    Command::own(
        "LR.CONFLICTS",
        -1,
        Action::Conflicts,
        "finds the keys with concurrent values",
    ),
    Command::write(
        "LR.RESOLVE",
        3,
        ONE,
        keys::resolve,
        "replaces the concurrent values of a key",
    )
    .stands_first(),
    Command::own(
        "LR.SYNC",
        -1,
        Action::Sync,
        "holds one conversation with every known peer",
    ),
    Command::own(
        "LR.PAUSE",
        1,
        Action::Pause,
        "ends all conversations and begins none",
    ),
    Command::own("LR.RESUME", 1, Action::Resume, "talks to peers again"),
    Command::own(
        "LR.ADDPEER",
        2,
        Action::AddPeer,
        "adds the address of a peer",
    ),
    Command::own(
        "LR.DROPPEER",
        2,
        Action::DropPeer,
        "removes the address of a peer",
    ),
    Command::own(
        "LR.RETIRE",
        2,
        Action::Retire,
        "sends a member away for good",
    ),
    Command::own(
        "LR.DIGEST",
        1,
        Action::Digest,
        "tells the fingerprint of all keys and values",
    ),
    Command::own(
        "LR.STATUS",
        1,
        Action::Status,
        "tells how the replica is, as JSON",
    ),
    Command::own(
        "LR.PEERS",
        1,
        Action::Peers,
        "tells how the peers are, as JSON",
    ),
    Command::own(
        "LR.CHANGES",
        -2,
        Action::Changes,
        "reads the changes that follow a cursor, as JSON",
    ),
    Command::own(
        "LR.BACKUP",
        2,
        Action::Backup,
        "copies the replica into a directory of the daemon's machine",
    ),
    Command::own(
        "LR.VERIFY",
        1,
        Action::Verify,
        "checks everything that is stored, and answers what is wrong as JSON",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::command::{NAME_BYTES_MAX, find};

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        for command in COMMANDS {
            let found = find(command.lower_name().as_bytes()).expect("it is in the table");
            assert_eq!(found.name, command.name);
            assert!(command.name.len() <= NAME_BYTES_MAX);
            assert!(!command.summary.is_empty());
        }
        assert!(find(b"").is_none());
        assert!(find(&[b'A'; 100]).is_none());
    }
}
