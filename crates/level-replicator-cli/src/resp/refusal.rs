//! Why a command was not carried out.

use std::borrow::Cow;

use level_replicator::Error;

use crate::resp::reply::ReplyWriter;

/// What a client is told instead of a reply. Its connection goes on.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A text with its code, such as `ERR syntax error`.
    Text(Cow<'static, str>),
    /// What the database says.
    Database(Error),
    /// The whole transaction is given up, with all that it was to write.
    GiveUp(Error),
}

pub(crate) const SYNTAX: Refusal = Refusal::Text(Cow::Borrowed("ERR syntax error"));

pub(crate) const NO_INTEGER: Refusal =
    Refusal::Text(Cow::Borrowed("ERR value is not an integer or out of range"));

impl Refusal {
    /// A text with its code.
    pub(crate) fn new(text: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::Text(text.into())
    }

    pub(crate) fn write(&self, out: &mut ReplyWriter) {
        match self {
            Refusal::Text(text) => out.error(text),
            Refusal::Database(error @ Error::FellBehind { .. }) => {
                out.error(&format!("FELLBEHIND {error}"));
            }
            Refusal::Database(error) | Refusal::GiveUp(error) => {
                out.error(&format!("ERR {error}"));
            }
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Database(error)
    }
}
