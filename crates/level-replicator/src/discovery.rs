//! Finding peers that nobody named.

pub(crate) mod lan;
pub(crate) mod multicast;
pub(crate) mod source;
