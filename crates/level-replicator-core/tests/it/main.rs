//! Tests of the core from the outside.

mod apply_laws;
mod change_feed;
mod cluster;
mod codec_round_trip;
mod conversation;
mod crashes;
mod damage;
mod heal_bounds;
mod layering;
mod limits;
mod misbehavior;
mod samples;
mod storage_conformance;
mod talking;
mod unreadable;
mod verification;
mod wire_golden;
