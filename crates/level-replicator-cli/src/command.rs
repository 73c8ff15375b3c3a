//! The commands.

pub(crate) mod demo;
pub(crate) mod secret;

/// What a command failed with: one line that says what, where and what to do.
pub(crate) type Failure = Box<dyn std::error::Error>;
