//! How the server behaves, and every bound it keeps, with its reason.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use level_replicator::{Address, Durability};
use zeroize::Zeroizing;

/// Longest key in bytes, inclusive: that of the store.
pub(crate) const KEY_BYTES_MAX: usize = 65_000;

/// Most arguments of a request: those of Redis. More than a batch takes, so that the store says what is too many.
pub(crate) const ARGUMENTS_MAX: usize = 1 << 20;

/// Latest moment at which a value can expire, in milliseconds since 1970: the last that the store can write.
pub(crate) const EXPIRES_MS_MAX: i64 = ((1 << 56) - 1) / 1_000;

/// Replies that wait before they are sent: a large reply is never in memory whole.
pub(crate) const FLUSH_BYTES: usize = 64 << 10;

/// What is read from a socket at once.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Bytes of an unfinished request that every client has free of the common bound.
pub(crate) const FREE_REQUEST_BYTES: usize = 64 << 10;

/// Writes of one connection that are handed over at once, and writes that are committed at once.
pub(crate) const GROUP_COMMANDS_MAX: usize = 1_000;

/// Bytes of requests that are committed at once, but for a single larger one.
pub(crate) const GROUP_BYTES_MAX: usize = 4 << 20;

/// Bytes read and written by a group beyond which the rest of it becomes the next one.
pub(crate) const GROUP_WORK_MAX: usize = 16 << 20;

/// Bytes that one transaction may read, write and answer: it is held in memory until it is committed.
pub(crate) const TRANSACTION_BYTES_MAX: usize = 256 << 20;

/// Requests from which a commit takes a thread of its own, so that readers are not held up.
pub(crate) const INLINE_COMMIT_BYTES_MAX: usize = 256 << 10;

/// Commands that a `MULTI` queues.
pub(crate) const QUEUED_COMMANDS_MAX: usize = 100_000;

/// Keys that a connection watches: each is compared at `EXEC`.
pub(crate) const WATCHES_MAX: usize = 10_000;

/// Channels and patterns of one connection: each pattern is tried on each change.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Bytes of all channels and patterns of one connection.
pub(crate) const SUBSCRIPTIONS_BYTES_MAX: usize = 4 << 20;

/// Keys that one `SCAN` looks at, whatever `COUNT` says, and bytes of them: its reply is in memory whole.
pub(crate) const SCAN_COUNT_MAX: usize = 10_000;
pub(crate) const SCAN_BYTES_MAX: usize = 1 << 20;

/// Bytes and number of the keys that cursors of `SCAN` stand for; the oldest are forgotten.
pub(crate) const CURSORS_BYTES_MAX: usize = 16 << 20;
pub(crate) const CURSORS_MAX: usize = 100_000;

/// Bytes of keys in one reply of `LR.CONFLICTS`, which is collected before it is sent.
pub(crate) const CONFLICTS_BYTES_MAX: usize = 64 << 20;

/// Keys that `FLUSHALL` deletes in one batch, and bytes of them.
pub(crate) const FLUSH_KEYS: usize = 10_000;
pub(crate) const FLUSH_KEYS_BYTES: usize = 8 << 20;

/// Calls that may wait, such as `LR.SYNC`, at once; others wait for their turn.
pub(crate) const BLOCKING_CALLS_MAX: usize = 16;

/// How long `LR.SYNC` tries if it is not told.
pub(crate) const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest name of a connection or of a client's library.
pub(crate) const CLIENT_NAME_BYTES_MAX: usize = 256;

/// Bytes of a password file that are read.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// How long a stop waits for commands that are under way.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How the Redis protocol is served. Begin with [`RespOptions::new`] and set what should differ.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RespOptions {
    /// Where to listen; port 0 picks a free one.
    pub listen: Address,
    /// What clients must say first. Without it only the loopback interface may be listened on.
    pub password: Option<Password>,
    /// That of the database: with [`Durability::Sync`] commits take a thread of their own.
    pub durability: Durability,
    /// Longest value in bytes, inclusive: that of the database. Default 8 MiB.
    pub value_bytes_max: usize,
    /// Connections at once. Default 10,000.
    pub clients_max: usize,
    /// Largest request in bytes. Default 256 MiB, what a batch may be.
    pub request_bytes_max: usize,
    /// Bytes of all requests that have not arrived whole or are not answered, beyond 64 KiB each. Default 512 MiB.
    pub incomplete_bytes_max: usize,
    /// Messages that wait for a subscriber before it is disconnected, in bytes. Default 8 MiB.
    pub subscriber_bytes_max: usize,
    /// How long a client may say nothing before it is disconnected; zero is for ever. Default zero.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of what waits for it before it is disconnected. Default 60 s.
    pub write_timeout: Duration,
}

impl RespOptions {
    /// The defaults, at an address.
    pub fn new(listen: Address) -> RespOptions {
        RespOptions {
            listen,
            password: None,
            durability: Durability::default(),
            value_bytes_max: 8 << 20,
            clients_max: 10_000,
            request_bytes_max: 256 << 20,
            incomplete_bytes_max: 512 << 20,
            subscriber_bytes_max: 8 << 20,
            idle_timeout: Duration::ZERO,
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// What clients must say before they are answered. It never shows, and is wiped from memory.
#[derive(Clone)]
pub struct Password {
    bytes: Zeroizing<Vec<u8>>,
}

impl Password {
    /// A password; `None` if it is empty, which would let everybody in.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Password> {
        let bytes = Zeroizing::new(bytes.into());
        (!bytes.is_empty()).then_some(Password { bytes })
    }

    /// Reads the first line of a file. White space at its ends does not belong to it.
    ///
    /// # Errors
    ///
    /// One line that names the file, if it cannot be read or begins with an empty line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Password, String> {
        let shown = path.as_ref().display();
        let mut text = Zeroizing::new(Vec::new());
        let read = std::fs::File::open(path.as_ref())
            .and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_end(&mut text));
        read.map_err(|error| format!("cannot read the password file {shown}: {error}"))?;
        if text.len() as u64 == PASSWORD_BYTES_MAX {
            return Err(format!("{shown} is too long for a password file"));
        }
        let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
        Password::new(line.trim_ascii()).ok_or_else(|| {
            format!("password file {shown} begins with an empty line: write the password there")
        })
    }

    /// The password as it is sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether this is the password. How long that takes says nothing of where they differ.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        let mut differs = u8::from(given.len() != self.bytes.len());
        for (place, byte) in given.iter().enumerate() {
            differs |= byte ^ self.bytes[place % self.bytes.len()];
        }
        std::hint::black_box(differs) == 0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_holds_it_in_its_first_line() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("password");
        std::fs::write(&path, " open sesame \r\nsomething else\n").expect("it is written");
        let password = Password::from_file(&path).expect("it holds one");
        assert!(password.is(b"open sesame"));

        std::fs::write(&path, "\n").expect("it is written");
        for path in [path, directory.path().join("none"), "/dev/zero".into()] {
            let told = Password::from_file(&path).expect_err("it holds none");
            assert!(told.contains(&path.display().to_string()), "{told}");
            assert_eq!(told.lines().count(), 1);
        }
    }

    #[test]
    fn a_password_is_itself_and_nothing_else_and_never_shows() {
        let password = Password::new("abc").expect("it is not empty");
        assert!(password.is(b"abc"));
        for wrong in ["", "a", "ab", "abd", "abcabc", "abcd"] {
            assert!(!password.is(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{password:?}"), "Password(..)");
        assert!(Password::new("").is_none());
    }
}
