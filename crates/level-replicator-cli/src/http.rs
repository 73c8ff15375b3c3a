//! A page about a running replica, its status as JSON, and its metrics for Prometheus, over HTTP.
//!
//! The rule: it only looks. Whoever asks changes nothing, holds up nobody, and costs at most the bounds of [`options`].
//!
//! One thread runs all connections as tasks. What asks the database takes another, one at a time, and all who ask at the
//! same moment share the answer.
//!
//! | module | what it knows |
//! |---|---|
//! | [`options`] | how the server behaves; every bound with its reason |
//! | `look`, `readiness` | what is seen of the database; whether it should be sent clients |
//! | `changes` | the change feed as a stream of events |
//! | `recent` | what happened lately that somebody should know |
//! | `metrics` | the same as text for Prometheus: docs/metrics.md |
//! | `gate` | who may ask, and for what; the headers of every response |
//! | `routes` | **the paths**, and what each answers |
//! | `patience`, `guests` | a stream that does not wait for ever; who is connected, and who goes when there are too many |
//! | [`server`] | the thread and its connections |

mod changes;
mod gate;
mod guests;
mod look;
mod metrics;
pub mod options;
mod patience;
mod readiness;
mod recent;
mod routes;
pub mod server;

pub use options::HttpOptions;
pub use server::{HttpServer, StartError};
