//! A Redis client that shows replies as text, so that tests can say what they expect in a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("a server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Client {
            stream: BufReader::new(stream),
        }
    }

    /// One command of words that hold no spaces, and its reply.
    pub(crate) fn call(&mut self, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.call_words(&words)
    }

    pub(crate) fn call_words(&mut self, words: &[&[u8]]) -> String {
        self.send_words(words);
        self.reply()
    }

    pub(crate) fn send(&mut self, line: &str) {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.send_words(&words);
    }

    pub(crate) fn send_words(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.send_raw(&request).expect("the server reads");
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next reply: words as they are, errors with their minus, nil, and lists in brackets.
    pub(crate) fn reply(&mut self) -> String {
        self.try_reply().expect("a reply")
    }

    pub(crate) fn try_reply(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).ok()?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let (kind, text) = line.split_at_checked(1)?;
        let number = || text.parse::<i64>().ok();
        Some(match kind {
            "+" => text.to_owned(),
            "-" => line.clone(),
            ":" => format!("({text})"),
            "_" => "nil".to_owned(),
            "$" => match usize::try_from(number()?) {
                Err(_) => "nil".to_owned(),
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.stream.read_exact(&mut bytes).ok()?;
                    String::from_utf8_lossy(&bytes[..len]).into_owned()
                }
            },
            "*" | ">" | "~" => match usize::try_from(number()?) {
                Err(_) => "nil".to_owned(),
                Ok(count) => self.list(count, kind)?,
            },
            "%" => {
                let pairs = usize::try_from(number()?).ok()?;
                self.list(2 * pairs, kind)?
            }
            other => format!("a reply that begins with {other}"),
        })
    }

    fn list(&mut self, count: usize, kind: &str) -> Option<String> {
        let parts: Option<Vec<String>> = (0..count).map(|_| self.try_reply()).collect();
        let kind = if kind == "*" { "" } else { kind };
        Some(format!("{kind}[{}]", parts?.join(" ")))
    }
}
