//! Tests of the core from the outside.

mod cluster;
mod conversation;
mod history;
mod random_schedules;
