//! The Redis protocol, versions 2 and 3, over a database: a door for every language.
//!
//! The rule: what a client sends is bounded before memory is taken for it, a client that does not read costs at most its
//! bounds, and a write is answered after it is committed.
//!
//! One thread runs all connections as tasks. Reads go straight to the database; writes of all connections meet in the
//! `writer`, which commits them in groups; what may wait for peers or read everything takes a thread of its own.
//!
//! | module | what it knows |
//! |---|---|
//! | [`options`] | how the server behaves; every bound with its reason |
//! | [`request`], [`reply`] | bytes to requests; replies to bytes |
//! | `refusal`, `edit` | why not; what commands read and write |
//! | `command` | every command: name, arity, keys, who carries it out |
//! | `glob`, `cursors` | patterns; what a cursor of `SCAN` stands for |
//! | `mailbox`, `client`, `subscriptions` | messages for a connection; who listens to what |
//! | `writer` | group commit |
//! | [`server`], `connection` | the thread and what its tasks share; one connection |

mod client;
mod command;
mod connection;
mod cursors;
mod edit;
mod glob;
mod mailbox;
pub mod options;
mod refusal;
pub mod reply;
pub mod request;
pub mod server;
mod subscriptions;
mod writer;

pub use options::{Password, RespOptions};
pub use server::{RespServer, StartError};
