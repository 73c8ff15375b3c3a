//! Bytes that nobody meant, for everything that reads a peer, a client or a disk.
//!
//! A *body* is a plain function of bytes that panics if something is broken that must hold whatever
//! the bytes say: not only that nothing panics, but that what is read can be written and read again,
//! that every bound is kept, and that a replica's tables stay true. Bodies know nothing of who feeds
//! them: the loop here, which needs no more than stable Rust, `cargo fuzz`, or a test with a corpus.
//!
//! | module | what it knows |
//! |---|---|
//! | [`target`] | a body with its seeds, and how deep it must get |
//! | [`fields`] | numbers and pieces out of an input, which never run out |
//! | [`mutation`] | what is changed in an input |
//! | [`seeds`] | what real replicas say and store, to begin from |
//! | [`frame`], [`message`], [`record`], [`disk`], [`announcement`], [`session`], [`resp`] | the bodies |
//! | [`corpus`] | the inputs that once found something |
//! | [`campaign`] | the loop: mutate, run, judge; and make a finding small |

pub mod target;

pub mod fields;

pub mod mutation;

pub mod seeds;

pub mod frame;

pub mod message;

pub mod record;

pub mod disk;

pub mod announcement;

pub mod session;

pub mod resp;

pub mod corpus;

pub mod campaign;

use target::Target;

/// Every target, in the order in which bytes travel.
pub const TARGETS: [Target; 7] = [
    frame::TARGET,
    message::TARGET,
    record::TARGET,
    disk::TARGET,
    announcement::TARGET,
    session::TARGET,
    resp::TARGET,
];
