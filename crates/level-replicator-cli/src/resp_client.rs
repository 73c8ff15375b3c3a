//! A client of a running daemon: requests out, replies in.
//!
//! The rule: nothing is allocated for a length that the other side announces before its bytes arrive, and
//! nothing is waited for without a limit.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use level_replicator::Address;

/// How long a connection, and each part of a reply, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

const LINE_BYTES_MAX: u64 = 64 * 1024;
const BULK_BYTES_MAX: u64 = 512 << 20;
const DEPTH_MAX: usize = 8;

/// What a daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Simple(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Answer>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error(
        "cannot reach a daemon at {address}: {source}; start one with 'level-replicator serve', or name another by --at"
    )]
    Connect { address: String, source: io::Error },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Broken { address: String, source: io::Error },
    /// Something else than a daemon answers there.
    #[error("what answers at {address} is no daemon: {what}")]
    Strange { address: String, what: String },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
}

pub(crate) struct RespClient {
    address: String,
    stream: BufReader<TcpStream>,
}

impl RespClient {
    /// Connects, and gives the password if there is one.
    pub(crate) fn connect(
        address: &Address,
        password: Option<&[u8]>,
    ) -> Result<RespClient, ClientError> {
        let shown = address.as_str().to_owned();
        let connect = || {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in address.as_str().to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
                        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
                        return Ok(stream);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let stream = connect().map_err(|source| ClientError::Connect {
            address: shown.clone(),
            source,
        })?;
        let mut client = RespClient {
            address: shown,
            stream: BufReader::with_capacity(64 * 1024, stream),
        };
        if let Some(password) = password {
            client.call(&[b"AUTH", password])?;
        }
        Ok(client)
    }

    /// How long each part of a reply may take from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) -> Result<(), ClientError> {
        let set = self.stream.get_ref().set_read_timeout(Some(patience));
        set.map_err(|error| self.broken(error))
    }

    /// One request and its answer.
    pub(crate) fn call(&mut self, words: &[&[u8]]) -> Result<Answer, ClientError> {
        self.send(words)?;
        self.receive()
    }

    /// Sends a request whose answer is received later.
    pub(crate) fn send(&mut self, words: &[&[u8]]) -> Result<(), ClientError> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        let sent = self.stream.get_mut().write_all(&request);
        sent.map_err(|error| self.broken(error))
    }

    /// The answer to the first request that has none yet.
    pub(crate) fn receive(&mut self) -> Result<Answer, ClientError> {
        self.answer(0)
    }

    /// How many answers an array has: they are received one by one.
    pub(crate) fn array_len(&mut self) -> Result<usize, ClientError> {
        let line = self.line()?;
        match line.strip_prefix('*').map(str::parse) {
            Some(Ok(len)) => Ok(len),
            _ if line.starts_with('-') => Err(refused(&line[1..])),
            _ => Err(self.strange("no list where one was expected")),
        }
    }

    fn answer(&mut self, depth: usize) -> Result<Answer, ClientError> {
        let line = self.line()?;
        let (kind, text) = line
            .split_at_checked(1)
            .ok_or_else(|| self.strange("an empty line"))?;
        Ok(match kind {
            "+" => Answer::Simple(text.to_owned()),
            "-" => return Err(refused(text)),
            ":" => Answer::Integer(self.number(text)?),
            "_" => Answer::Null,
            "$" => match u64::try_from(self.number(text)?) {
                Err(_) => Answer::Null,
                Ok(len) if len > BULK_BYTES_MAX => return Err(self.strange("a value that long")),
                Ok(len) => Answer::Bulk(self.bulk(len)?),
            },
            "*" => match usize::try_from(self.number(text)?) {
                Err(_) => Answer::Null,
                Ok(_) if depth >= DEPTH_MAX => return Err(self.strange("an array that deep")),
                Ok(count) => {
                    let mut answers = Vec::new();
                    for _ in 0..count {
                        answers.push(self.answer(depth + 1)?);
                    }
                    Answer::Array(answers)
                }
            },
            other => return Err(self.strange(&format!("a reply that begins with '{other}'"))),
        })
    }

    fn bulk(&mut self, len: u64) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(len).read_to_end(&mut bytes);
        read.map_err(|error| self.broken(error))?;
        let mut end = [0; 2];
        let ended = self.stream.read_exact(&mut end);
        ended.map_err(|error| self.broken(error))?;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        read.map_err(|error| self.broken(error))?;
        if line.pop() != Some(b'\n') {
            if line.is_empty() {
                return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
            }
            return Err(self.strange("a line without an end"));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn number(&self, text: &str) -> Result<i64, ClientError> {
        text.parse()
            .map_err(|_| self.strange("a number that is none"))
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            address: self.address.clone(),
            source,
        }
    }

    fn strange(&self, what: &str) -> ClientError {
        ClientError::Strange {
            address: self.address.clone(),
            what: what.to_owned(),
        }
    }
}

fn refused(text: &str) -> ClientError {
    let refusal = text.strip_prefix("ERR ").unwrap_or(text);
    let cure = match text.split(' ').next() {
        Some("NOAUTH" | "WRONGPASS") => "; give the right password by --password-file",
        _ => "",
    };
    ClientError::Refused(format!("{refusal}{cure}"))
}
