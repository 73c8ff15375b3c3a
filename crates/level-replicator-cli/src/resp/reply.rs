//! Replies to bytes, in both versions of the protocol.
//!
//! The rule: a handler says what it means (null, map, set), and the version decides how that is written.

/// Memory that a writer keeps when nothing waits: there may be thousands that have nothing to write.
const KEPT_BYTES: usize = 1 << 10;

/// Which version of the protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Maps are flat arrays, null is a bulk or an array of length -1.
    #[default]
    Resp2,
    /// Maps, sets, pushes, doubles and null are themselves.
    Resp3,
}

impl Protocol {
    /// Its number, as `HELLO` has it.
    pub fn number(self) -> i64 {
        match self {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }
}

/// Replies that were written and wait to be sent.
#[derive(Debug, Default)]
pub struct ReplyWriter {
    bytes: Vec<u8>,
    protocol: Protocol,
}

impl ReplyWriter {
    /// A writer with nothing in it.
    pub fn new(protocol: Protocol) -> ReplyWriter {
        ReplyWriter {
            bytes: Vec::new(),
            protocol,
        }
    }

    /// Which version it writes.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Sets which version is written from now on.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// What was written and not taken.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets what was written from a place on.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Forgets what was written, and gives back memory that is not little.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
    }

    /// Takes what was written.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Adds replies that were written elsewhere.
    pub fn append(&mut self, mut written: Vec<u8>) {
        if self.bytes.is_empty() {
            self.bytes = written;
        } else {
            self.bytes.append(&mut written);
        }
    }

    /// Adds replies that were written elsewhere.
    pub fn extend(&mut self, written: &[u8]) {
        self.bytes.extend_from_slice(written);
    }

    /// A short text such as `OK`.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// An error: a code such as `ERR`, and what is wrong.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.head(b':', number);
    }

    /// A count.
    pub fn count(&mut self, count: usize) {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Any bytes.
    pub fn bulk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.head(b'$', bytes.len() as i64);
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Any bytes, or nothing.
    pub fn bulk_or_null(&mut self, bytes: Option<impl AsRef<[u8]>>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// Nothing, where a value could be.
    pub fn null(&mut self) {
        self.bytes.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Nothing, where an array could be.
    pub fn null_array(&mut self) {
        self.bytes.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The head of an array; so many replies must follow.
    pub fn array(&mut self, len: usize) {
        self.head(b'*', len as i64);
    }

    /// The head of a map; so many pairs of replies must follow.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', pairs as i64 * 2),
            Protocol::Resp3 => self.head(b'%', pairs as i64),
        }
    }

    /// The head of a set; so many replies must follow.
    pub fn set(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', len as i64),
            Protocol::Resp3 => self.head(b'~', len as i64),
        }
    }

    /// The head of something that was not asked for; so many replies must follow.
    pub fn push(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', len as i64),
            Protocol::Resp3 => self.head(b'>', len as i64),
        }
    }

    /// A number with a fraction.
    pub fn double(&mut self, number: f64) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(number.to_string()),
            Protocol::Resp3 => self.line(b',', &number.to_string()),
        }
    }

    /// One line. What would end it is written as a space: texts of errors may quote a client.
    fn line(&mut self, kind: u8, text: &str) {
        self.bytes.push(kind);
        let line = text.bytes().map(|byte| match byte {
            b'\r' | b'\n' => b' ',
            other => other,
        });
        self.bytes.extend(line);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn head(&mut self, kind: u8, number: i64) {
        self.bytes.push(kind);
        if (0..10).contains(&number) {
            self.bytes.push(b'0' + number as u8);
        } else {
            self.bytes.extend_from_slice(number.to_string().as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(protocol: Protocol, write: impl Fn(&mut ReplyWriter)) -> String {
        let mut writer = ReplyWriter::new(protocol);
        write(&mut writer);
        String::from_utf8(writer.take()).expect("the test writes text")
    }

    #[test]
    fn each_version_writes_what_is_meant_in_its_own_way() {
        let everything = |writer: &mut ReplyWriter| {
            writer.simple("OK");
            writer.integer(-12);
            writer.bulk("a\r\n");
            writer.null();
            writer.null_array();
            writer.array(2);
            writer.map(1);
            writer.set(3);
            writer.push(4);
            writer.double(0.5);
        };
        assert_eq!(
            written(Protocol::Resp2, everything),
            "+OK\r\n:-12\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n*2\r\n*2\r\n*3\r\n*4\r\n$3\r\n0.5\r\n"
        );
        assert_eq!(
            written(Protocol::Resp3, everything),
            "+OK\r\n:-12\r\n$3\r\na\r\n\r\n_\r\n_\r\n*2\r\n%1\r\n~3\r\n>4\r\n,0.5\r\n"
        );
    }

    #[test]
    fn an_error_stays_one_line_whatever_it_quotes() {
        let text = written(Protocol::Resp2, |writer| writer.error("ERR no\r\n+OK"));
        assert_eq!(text, "-ERR no  +OK\r\n");
    }
}
