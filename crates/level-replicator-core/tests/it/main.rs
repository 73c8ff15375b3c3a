//! Tests of the core from the outside.

mod apply_laws;
mod cluster;
mod codec_round_trip;
mod conversation;
mod damage;
mod history;
mod layering;
mod limits;
mod misbehavior;
mod random_schedules;
mod samples;
mod talking;
mod wire_golden;
