//! A server of the Redis protocol in this process, and a client of bare sockets.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use level_replicator::{Db, Options};
use level_replicator_cli::resp::{RespOptions, RespServer};
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A database with its door.
pub(crate) struct Served {
    pub(crate) db: Db,
    pub(crate) server: RespServer,
    _directory: TempDir,
}

impl Served {
    /// One that talks to nobody.
    pub(crate) fn start() -> Served {
        Served::start_with(Options::new(), |_| {})
    }

    pub(crate) fn start_with(options: Options, set: impl FnOnce(&mut RespOptions)) -> Served {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = options.first_sync_timeout(Duration::ZERO);
        let db = options.open(directory.path()).expect("it opens");
        let mut served = RespOptions::new("127.0.0.1:0".parse().expect("an address"));
        set(&mut served);
        let server = RespServer::start(db.clone(), served).expect("it starts");
        Served {
            db,
            server,
            _directory: directory,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.server.address().as_str())
    }
}

/// A reply, in either version of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
    Set(Vec<Reply>),
    Push(Vec<Reply>),
}

/// `+OK`.
pub(crate) fn ok() -> Reply {
    Reply::Simple("OK".to_owned())
}

/// A bulk of text.
pub(crate) fn bulk(text: impl AsRef<[u8]>) -> Reply {
    Reply::Bulk(text.as_ref().to_vec())
}

/// An array of bulks.
pub(crate) fn bulks(texts: &[&str]) -> Reply {
    Reply::Array(texts.iter().map(bulk).collect())
}

impl Reply {
    /// What fits a message: a reply may hold many megabytes.
    fn brief(&self) -> String {
        match self {
            Reply::Bulk(bytes) if bytes.len() > 200 => format!("{} bytes", bytes.len()),
            Reply::Array(items) if items.len() > 1 => format!("an array of {}", items.len()),
            short => format!("{short:?}"),
        }
    }

    pub(crate) fn error(&self) -> &str {
        match self {
            Reply::Error(text) => text,
            other => panic!("no error: {}", other.brief()),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Reply::Bulk(bytes) => String::from_utf8(bytes.clone()).expect("it is text"),
            Reply::Simple(text) => text.clone(),
            other => panic!("no text: {}", other.brief()),
        }
    }

    pub(crate) fn items(&self) -> &[Reply] {
        match self {
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => items,
            other => panic!("no array: {}", other.brief()),
        }
    }
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    arrived: VecDeque<u8>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("the server takes connections");
        let timed = stream.set_read_timeout(Some(PATIENCE));
        timed
            .and(stream.set_write_timeout(Some(PATIENCE)))
            .and(stream.set_nodelay(true))
            .expect("a socket can be set up");
        Client {
            stream,
            arrived: VecDeque::new(),
        }
    }

    /// Says a line of words between spaces, and hears the reply.
    pub(crate) fn say(&mut self, line: &str) -> Reply {
        let words: Vec<&str> = line.split(' ').collect();
        self.call(&words)
    }

    pub(crate) fn call(&mut self, words: &[impl AsRef<[u8]>]) -> Reply {
        self.send(&request(words));
        self.hear()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes it");
    }

    pub(crate) fn hear(&mut self) -> Reply {
        self.try_hear().expect("the server answers")
    }

    /// The reply; an error of the connection otherwise.
    pub(crate) fn try_hear(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at(1);
        let count = || rest.parse::<i64>().expect("a number");
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(count()),
            "_" => Reply::Null,
            "$" | "*" if rest == "-1" => Reply::Null,
            "$" => {
                let bytes = self.take(count() as usize)?;
                assert_eq!(self.take(2)?, b"\r\n");
                Reply::Bulk(bytes)
            }
            "*" => Reply::Array(self.several(count())?),
            "~" => Reply::Set(self.several(count())?),
            ">" => Reply::Push(self.several(count())?),
            "%" => {
                let pairs = (0..count()).map(|_| Ok((self.try_hear()?, self.try_hear()?)));
                Reply::Map(pairs.collect::<io::Result<_>>()?)
            }
            _ => panic!("no reply: {line}"),
        })
    }

    /// Waits until the server closes the connection; whatever came before is passed over.
    pub(crate) fn hear_the_end(&mut self) {
        let mut piece = [0; 4_096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_patience(&error) => panic!("the connection stays open"),
                Err(_) => return,
            }
        }
    }

    fn several(&mut self, count: i64) -> io::Result<Vec<Reply>> {
        (0..count).map(|_| self.try_hear()).collect()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.take(1)?);
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8(line).expect("lines are text"))
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut piece = [0; 65_536];
        while self.arrived.len() < count {
            match self.stream.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                len => self.arrived.extend(&piece[..len]),
            }
        }
        Ok(self.arrived.drain(..count).collect())
    }
}

fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A request as clients write it.
pub(crate) fn request(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Asks again until the answer is there.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
