//! A body with its seeds, and how deep it must get.
//!
//! The rule: a target that exercises nothing fails. So each body answers what came of an input, and
//! each target says how many of its inputs must get past the first checks, and with how many
//! different outcomes.

use fastrand::Rng;
use level_replicator_core::codec::DecodeError;

/// What came of an input that broke nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the input was read, rather than refused.
    pub is_deep: bool,
    /// What happened, in a word or two: few names for many inputs.
    pub name: String,
}

impl Outcome {
    /// The input was read.
    pub fn deep(name: impl Into<String>) -> Outcome {
        Outcome {
            is_deep: true,
            name: name.into(),
        }
    }

    /// The input was refused.
    pub fn refused(name: impl Into<String>) -> Outcome {
        Outcome {
            is_deep: false,
            name: name.into(),
        }
    }
}

/// Runs one input; panics if something is broken.
pub type Body = fn(&[u8]) -> Outcome;

/// Changes an input, knowing its format.
pub type Remake = fn(&mut Rng, &[u8]) -> Vec<u8>;

/// One reader of foreign bytes, and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and that of its folder in the corpus.
    pub name: &'static str,
    /// What is run.
    pub body: Body,
    /// Inputs that are well-formed, to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// A change that knows the format, where blind ones would die at a checksum.
    pub remake: Option<Remake>,
    /// The least share of inputs, in percent, that must be read.
    pub deep_percent_min: u64,
    /// The least number of different outcomes.
    pub outcomes_min: usize,
}

/// What kind of error it is, without the numbers in it.
pub fn decode_error_name(error: &DecodeError) -> String {
    match error {
        DecodeError::Truncated { what } => format!("{what}: truncated"),
        DecodeError::TooLarge { what, .. } => format!("{what}: too large"),
        DecodeError::Invalid { what } => format!("{what}: invalid"),
        DecodeError::Trailing { what, .. } => format!("{what}: trailing"),
        DecodeError::Checksum { what } => format!("{what}: checksum"),
        other => format!("{other:?}"),
    }
}
