//! What the demo and its replicas say to each other over pipes.
//!
//! A message is a line of words, then as many bytes as the line's last words say:
//! `put KEY-LENGTH VALUE-LENGTH`, newline, key, value.

use std::io::{self, BufRead, Write};

/// A line, and the bytes that belong to it.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) words: Vec<String>,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl Said {
    pub(crate) fn verb(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(crate) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    pub(crate) fn number(&self, index: usize) -> u64 {
        self.word(index).parse().unwrap_or(0)
    }
}

/// Says a line without bytes.
pub(crate) fn say(out: &mut impl Write, line: &str) -> io::Result<()> {
    writeln!(out, "{line}")?;
    out.flush()
}

/// Says a verb about a key and a value. Nothing is flushed, so that many can follow one another.
pub(crate) fn say_entry(
    out: &mut impl Write,
    verb: &str,
    key: &[u8],
    value: &[u8],
) -> io::Result<()> {
    writeln!(out, "{verb} +{} +{}", key.len(), value.len())?;
    out.write_all(key)?;
    out.write_all(value)
}

/// Hears the next line with its bytes; `None` at the end.
pub(crate) fn hear(input: &mut impl BufRead) -> io::Result<Option<Said>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let mut lengths = words
        .iter()
        .filter_map(|word| word.strip_prefix('+')?.parse().ok());
    let (key_len, value_len) = (lengths.next().unwrap_or(0), lengths.next().unwrap_or(0));
    let mut key = vec![0; key_len];
    input.read_exact(&mut key)?;
    let mut value = vec![0; value_len];
    input.read_exact(&mut value)?;
    Ok(Some(Said { words, key, value }))
}
