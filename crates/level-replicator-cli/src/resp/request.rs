//! Bytes of a connection to requests: RESP arrays of bulk strings, and lines typed by hand.
//!
//! The rule: nothing is allocated by what a request says of itself, only by what has arrived of it, and every
//! number in it is checked before it is used. How the bytes were cut makes no difference.

use bytes::{Buf, Bytes, BytesMut};

/// Longest line: of a request typed by hand, and of the numbers in others.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What a request may be. A connection that has not said the password gets [`Bounds::stranger`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most arguments, the command's name among them.
    pub arguments: usize,
    /// Longest argument in bytes.
    pub argument_bytes: usize,
    /// Largest request in bytes.
    pub request_bytes: usize,
    /// Whether it is a connection that has not said the password, whose errors say so.
    pub stranger: bool,
}

impl Bounds {
    /// What those may send who have not said the password: enough to say it.
    pub fn stranger() -> Bounds {
        Bounds {
            arguments: 10,
            argument_bytes: 16 << 10,
            request_bytes: 16 << 10,
            stranger: true,
        }
    }
}

/// A command and its arguments, as they arrived.
///
/// The arguments are places in one piece of memory: a million of them cost little more than their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    data: Bytes,
    places: Vec<Place>,
}

/// Where an argument begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    start: u32,
    end: u32,
}

impl Request {
    /// The command's name, as it was written.
    pub fn name(&self) -> &[u8] {
        self.argument(0)
    }

    /// How many arguments there are, the command's name among them. There is at least one.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is not even a name. The reader gives no such request.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// An argument; the name is argument 0. One that is missing is empty.
    pub fn argument(&self, at: usize) -> &[u8] {
        self.places.get(at).map_or(&[], |place| {
            &self.data[place.start as usize..place.end as usize]
        })
    }

    /// The arguments from one on.
    pub fn arguments_from(&self, at: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        let places = self.places.get(at..).unwrap_or_default();
        places
            .iter()
            .map(|place| &self.data[place.start as usize..place.end as usize])
    }

    /// The request that begins at an argument.
    pub(crate) fn from(&self, at: usize) -> Request {
        Request {
            data: self.data.clone(),
            places: self.places.get(at..).unwrap_or_default().to_vec(),
        }
    }

    /// Bytes that it holds in memory.
    pub fn size(&self) -> usize {
        self.data.len() + self.places.len() * size_of::<Place>()
    }
}

/// Why a connection cannot go on. The texts are those of Redis, which clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(String);

impl ProtocolError {
    fn new(text: &str) -> ProtocolError {
        ProtocolError(text.to_owned())
    }
}

/// Takes requests out of the bytes of one connection.
#[derive(Debug)]
pub struct RequestReader {
    buffer: BytesMut,
    bounds: Bounds,
    /// The request of which a part has arrived.
    partial: Option<Partial>,
}

/// An array of which something is still to come.
#[derive(Debug)]
struct Partial {
    places: Vec<Place>,
    /// Arguments that have not arrived whole.
    missing: usize,
    /// What has been read of the buffer.
    at: usize,
    /// The length of the argument that begins there, once it is known.
    argument_len: Option<usize>,
}

impl RequestReader {
    /// A reader of a new connection.
    pub fn new(bounds: Bounds) -> RequestReader {
        RequestReader {
            buffer: BytesMut::new(),
            bounds,
            partial: None,
        }
    }

    /// Sets what the next requests may be.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The bytes that wait, to add to them.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that wait for the rest of their request, or to be read.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Memory that is held for them.
    pub fn memory(&self) -> usize {
        let places = self.partial.as_ref().map_or(0, |p| p.places.capacity());
        self.buffer.capacity() + places * size_of::<Place>()
    }

    /// Gives back memory that nothing waits in: a connection that says nothing costs little.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next request, if all of it has arrived.
    ///
    /// # Errors
    ///
    /// If it is none, or over its bounds. Nothing after it can be understood.
    pub fn next_request(&mut self) -> Result<Option<Request>, ProtocolError> {
        loop {
            if self.partial.is_none() {
                match self.buffer.first() {
                    None => return Ok(None),
                    Some(b'*') => match self.begin_array()? {
                        Begun::NotYet => return Ok(None),
                        Begun::Nothing => continue,
                        Begun::Array => {}
                    },
                    Some(_) => match self.read_line()? {
                        None => return Ok(None),
                        Some(request) if request.is_empty() => continue,
                        Some(request) => return Ok(Some(request)),
                    },
                }
            }
            return self.read_array();
        }
    }

    fn begin_array(&mut self) -> Result<Begun, ProtocolError> {
        let too_long = "too big mbulk count string";
        let Some((line, next)) = line_at(&self.buffer, 1, too_long)? else {
            return Ok(Begun::NotYet);
        };
        let invalid = || ProtocolError::new("invalid multibulk length");
        let count = parse_integer(line).ok_or_else(invalid)?;
        if count <= 0 {
            self.buffer.advance(next);
            return Ok(Begun::Nothing);
        }
        match usize::try_from(count) {
            Ok(missing) if missing <= self.bounds.arguments => {
                self.partial = Some(Partial {
                    // Most commands are short; for long ones it grows as they arrive.
                    places: Vec::with_capacity(missing.min(4)),
                    missing,
                    at: next,
                    argument_len: None,
                });
                Ok(Begun::Array)
            }
            _ if self.bounds.stranger => {
                Err(ProtocolError::new("unauthenticated multibulk length"))
            }
            _ => Err(invalid()),
        }
    }

    fn read_array(&mut self) -> Result<Option<Request>, ProtocolError> {
        let Some(partial) = &mut self.partial else {
            return Ok(None);
        };
        while partial.missing > 0 {
            if !partial.read_argument(&self.buffer, &self.bounds)? {
                return Ok(None);
            }
        }
        let places = std::mem::take(&mut partial.places);
        let data = self.buffer.split_to(partial.at).freeze();
        self.partial = None;
        Ok(Some(Request { data, places }))
    }

    /// A request typed by hand: words between spaces, with quotes.
    fn read_line(&mut self) -> Result<Option<Request>, ProtocolError> {
        let Some((line, next)) = line_at(&self.buffer, 0, "too big inline request")? else {
            return Ok(None);
        };
        let unbalanced = || ProtocolError::new("unbalanced quotes in request");
        let request = split_words(line).ok_or_else(unbalanced)?;
        if request.len() > self.bounds.arguments || line.len() > self.bounds.request_bytes {
            return Err(ProtocolError::new("too big inline request"));
        }
        self.buffer.advance(next);
        Ok(Some(request))
    }
}

enum Begun {
    NotYet,
    /// An array of nothing, which is passed over as Redis does.
    Nothing,
    Array,
}

impl Partial {
    /// Reads one argument; answers whether all of it was there.
    fn read_argument(&mut self, buffer: &[u8], bounds: &Bounds) -> Result<bool, ProtocolError> {
        let len = match self.argument_len {
            Some(len) => len,
            None => match self.read_length(buffer, bounds)? {
                None => return Ok(false),
                Some(len) => *self.argument_len.insert(len),
            },
        };
        let end = self.at + len;
        let Some(tail) = buffer.get(end..end + 2) else {
            return Ok(false);
        };
        if tail != b"\r\n" {
            return Err(ProtocolError::new("expected CRLF after a bulk"));
        }
        // The bounds keep both within 32 bits.
        self.places.push(Place {
            start: self.at as u32,
            end: end as u32,
        });
        self.at = end + 2;
        self.missing -= 1;
        self.argument_len = None;
        Ok(true)
    }

    fn read_length(
        &mut self,
        buffer: &[u8],
        bounds: &Bounds,
    ) -> Result<Option<usize>, ProtocolError> {
        match buffer.get(self.at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => {
                let other = other.escape_ascii();
                return Err(ProtocolError(format!("expected '$', got '{other}'")));
            }
        }
        let too_long = "too big bulk count string";
        let Some((line, next)) = line_at(buffer, self.at + 1, too_long)? else {
            return Ok(None);
        };
        let len = parse_integer(line).and_then(|len| usize::try_from(len).ok());
        match len {
            Some(len) if len <= bounds.argument_bytes => {
                if next.saturating_add(len) > bounds.request_bytes {
                    return Err(ProtocolError::new("too big request"));
                }
                self.at = next;
                Ok(Some(len))
            }
            Some(_) if bounds.stranger => Err(ProtocolError::new("unauthenticated bulk length")),
            _ => Err(ProtocolError::new("invalid bulk length")),
        }
    }
}

/// A line without its end, and where the next one begins; `None` if its end has not arrived.
fn line_at<'a>(
    buffer: &'a [u8],
    start: usize,
    too_long: &str,
) -> Result<Option<(&'a [u8], usize)>, ProtocolError> {
    let rest = buffer.get(start..).unwrap_or_default();
    let looked_at = &rest[..rest.len().min(LINE_BYTES_MAX + 1)];
    match looked_at.iter().position(|&byte| byte == b'\n') {
        Some(end) => {
            let line = &rest[..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            Ok(Some((line, start + end + 1)))
        }
        None if rest.len() > LINE_BYTES_MAX => Err(ProtocolError::new(too_long)),
        None => Ok(None),
    }
}

/// A decimal number as Redis reads it: no sign but `-`, no space, no leading zero.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_canonical = match digits {
        [] => false,
        [b'0', ..] => text.len() == 1,
        [first, ..] => first.is_ascii_digit(),
    };
    if !is_canonical || text.len() > 20 {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Splits a line into words as Redis does: `"..."` knows `\xHH`, `\n`, `\r`, `\t`, `\b`, `\a` and `\` before
/// anything else, `'...'` only `\'`. `None` if a quote is not closed, or closed within a word.
fn split_words(line: &[u8]) -> Option<Request> {
    let mut data = Vec::new();
    let mut places = Vec::new();
    let mut rest = line.trim_ascii_start();
    while !rest.is_empty() {
        let start = data.len() as u32;
        rest = take_word(rest, &mut data)?;
        let end = data.len() as u32;
        places.push(Place { start, end });
        rest = rest.trim_ascii_start();
    }
    Some(Request {
        data: data.into(),
        places,
    })
}

/// Appends one word to `data`; answers what follows it.
fn take_word<'a>(mut rest: &'a [u8], data: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return Some(rest),
            [space, ..] if space.is_ascii_whitespace() || *space == 0 => return Some(&rest[1..]),
            [quote @ (b'"' | b'\''), quoted @ ..] => {
                rest = take_quoted(*quote, quoted, data)?;
                let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some(rest);
            }
            [byte, tail @ ..] => {
                data.push(*byte);
                rest = tail;
            }
        }
    }
}

/// Appends what stands in quotes; answers what follows the closing one.
fn take_quoted<'a>(quote: u8, mut rest: &'a [u8], data: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return None,
            [b'\\', b'x', high, low, tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                data.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] if quote == b'"' => {
                data.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            [b'\\', b'\'', tail @ ..] if quote == b'\'' => {
                data.push(b'\'');
                rest = tail;
            }
            [byte, tail @ ..] if *byte == quote => return Some(tail),
            [byte, tail @ ..] => {
                data.push(*byte);
                rest = tail;
            }
        }
    }
}

fn hex_digit(digit: u8) -> u8 {
    char::from(digit)
        .to_digit(16)
        .map_or(0, |value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        arguments: 8,
        argument_bytes: 100,
        request_bytes: 300,
        stranger: false,
    };

    type Words = Vec<Vec<u8>>;

    fn words(request: &Request) -> Words {
        request.arguments_from(0).map(<[u8]>::to_vec).collect()
    }

    fn read(bounds: Bounds, pieces: &[&[u8]]) -> (Vec<Words>, Option<String>) {
        let mut reader = RequestReader::new(bounds);
        let mut requests = Vec::new();
        for piece in pieces {
            reader.buffer().extend_from_slice(piece);
            loop {
                match reader.next_request() {
                    Ok(Some(request)) => requests.push(words(&request)),
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error.to_string())),
                }
            }
        }
        (requests, None)
    }

    fn good(text: &[u8]) -> Vec<Words> {
        let (requests, error) = read(BOUNDS, &[text]);
        assert_eq!(error, None, "{}", text.escape_ascii());
        requests
    }

    fn refused(text: &[u8]) -> String {
        let (_, error) = read(BOUNDS, &[text]);
        error.unwrap_or_else(|| panic!("{} was taken", text.escape_ascii()))
    }

    #[test]
    fn arrays_and_lines_come_one_after_the_other() {
        let text = b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\nPING\r\n\r\n  \n*0\r\n*-1\r\nset  a \tb\n*1\r\n$0\r\n\r\n";
        let expected: [&[&[u8]]; 4] = [
            &[b"GET", b"\r\n"],
            &[b"PING"],
            &[b"set", b"a", b"b"],
            &[b""],
        ];
        let expected = expected.map(|request| request.iter().map(|word| word.to_vec()).collect());
        assert_eq!(good(text), expected);

        // However the bytes are cut.
        for len in 1..text.len() {
            let pieces: Vec<&[u8]> = text.chunks(len).collect();
            assert_eq!(read(BOUNDS, &pieces), (expected.to_vec(), None), "{len}");
        }
    }

    #[test]
    fn quotes_in_a_line_are_read_as_redis_does() {
        let line = br#"set "a b" 'c d' "\x41\n\"\q" 'it\'s\n' "" e"f"  "#;
        let line = [line, &b"\r\n"[..]].concat();
        let words: [&[u8]; 7] = [b"set", b"a b", b"c d", b"A\n\"q", b"it's\\n", b"", b"ef"];
        assert_eq!(good(&line), [words.map(<[u8]>::to_vec)]);

        for unbalanced in [
            "get \"a\n",
            "get 'a\n",
            "get \"a\"b\n",
            "get 'a'b\n",
            "get \"a\\\"\n",
        ] {
            let text = refused(unbalanced.as_bytes());
            assert_eq!(text, "Protocol error: unbalanced quotes in request");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_text_of_redis() {
        for (text, error) in [
            (&b"*x\r\n"[..], "invalid multibulk length"),
            (b"*9\r\n", "invalid multibulk length"),
            (b"*99999999999999999999\r\n", "invalid multibulk length"),
            (b"*+1\r\n", "invalid multibulk length"),
            (b"*01\r\n", "invalid multibulk length"),
            (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$101\r\n", "invalid bulk length"),
            (b"*1\r\n$\r\n", "invalid bulk length"),
            (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk"),
            (b"*1\r\n$4\r\nPING\n\n", "expected CRLF after a bulk"),
            (b"1 2 3 4 5 6 7 8 9\r\n", "too big inline request"),
        ] {
            assert_eq!(refused(text), format!("Protocol error: {error}"));
        }
        let hundred = "$100\r\n".to_owned() + &"x".repeat(100) + "\r\n";
        let sum = refused(("*3\r\n".to_owned() + &hundred.repeat(3)).as_bytes());
        assert_eq!(sum, "Protocol error: too big request");
    }

    #[test]
    fn a_line_without_an_end_is_refused_when_it_is_too_long() {
        let long = vec![b'a'; LINE_BYTES_MAX + 1];
        assert_eq!(refused(&long), "Protocol error: too big inline request");
        let count = [b"*", &long[..]].concat();
        assert_eq!(
            refused(&count),
            "Protocol error: too big mbulk count string"
        );
        let len = [b"*1\r\n$", &long[..]].concat();
        assert_eq!(refused(&len), "Protocol error: too big bulk count string");
    }

    #[test]
    fn strangers_may_say_little() {
        let bounds = Bounds::stranger();
        let (_, error) = read(bounds, &[b"*11\r\n"]);
        let error = error.expect("eleven arguments are refused");
        assert_eq!(error, "Protocol error: unauthenticated multibulk length");
        let (_, error) = read(bounds, &[b"*2\r\n$4\r\nAUTH\r\n$16385\r\n"]);
        let error = error.expect("a long password is refused");
        assert_eq!(error, "Protocol error: unauthenticated bulk length");
    }

    #[test]
    fn a_declared_length_allocates_nothing() {
        let bounds = Bounds {
            arguments: 1 << 20,
            argument_bytes: 64 << 20,
            request_bytes: 256 << 20,
            stranger: false,
        };
        let mut reader = RequestReader::new(bounds);
        let head = format!("*1048576\r\n${}\r\n", 64 << 20);
        reader.buffer().extend_from_slice(head.as_bytes());
        assert_eq!(reader.next_request(), Ok(None));
        assert!(reader.memory() < 1_000, "{}", reader.memory());
    }
}
