//! The proofs of the bench, small: whole processes, real sockets, nothing timed.

mod proofs;
