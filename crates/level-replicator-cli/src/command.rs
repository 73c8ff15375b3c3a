//! The commands.

pub(crate) mod bench;
pub(crate) mod bulk;
pub(crate) mod care;
pub(crate) mod demo;
pub(crate) mod invite;
pub(crate) mod look;
pub(crate) mod picture;
pub(crate) mod range;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod steer;
pub(crate) mod values;
pub(crate) mod watch;

/// What a command failed with: one line that says what, where and what to do.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// The arguments make no sense together. The exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);
