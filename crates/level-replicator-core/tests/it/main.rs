//! Tests of the core from the outside.

mod cluster;
mod conversation;
