//! What must hold at full size, between real processes: deletes stay deleted, copies of a replica are
//! no danger, and an empty replica joins however often it is killed.
//!
//! The rule: what is wrong is counted, and the program ends with an error if anything was; how long
//! something takes is told, and never wrong.

pub(crate) mod copies;
pub(crate) mod deletes;
pub(crate) mod joins;

use std::fmt;

/// What a proof found, as Markdown, and what of it is wrong.
#[derive(Default)]
pub(crate) struct Findings {
    text: String,
    wrong: Vec<String>,
}

impl Findings {
    /// Adds a line of text.
    pub(crate) fn say(&mut self, line: impl fmt::Display) {
        eprintln!("{line}");
        self.text += &format!("{line}\n");
    }

    /// Adds what must hold.
    pub(crate) fn expect(&mut self, holds: bool, what: impl fmt::Display) {
        let word = if holds { "holds" } else { "WRONG" };
        self.say(format_args!("* {word}: {what}"));
        if !holds {
            self.wrong.push(what.to_string());
        }
    }

    /// What is wrong.
    pub(crate) fn wrong(&self) -> &[String] {
        &self.wrong
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
