//! The replication protocol of level-replicator as a pure state machine.
//!
//! Nothing here opens a socket or a file, starts a thread, or reads a clock: a [`replica::Replica`]
//! is told what happened and what time it is, and answers with what to do. So every run can be
//! repeated from its inputs. The library `level-replicator` puts files, sockets and time around it.
//!
//! The modules in reading order; each uses only those above it, and a test checks that:

pub mod limits;

#[doc(hidden)]
pub mod mistake;

pub mod codec;

pub mod clock;

pub mod writers;

pub mod members;

pub mod record;

pub mod resolver;

pub mod address;

pub mod storage;

pub mod log;

pub mod known_rows;

pub mod state;

pub mod frame;

pub mod packing;

pub mod announcement;

pub mod config;

pub mod delta;

pub mod heal;

pub mod message;

pub mod session;

pub mod event;

pub mod peers;

pub mod scheduler;

pub mod replica;
