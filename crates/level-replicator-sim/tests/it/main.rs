//! Tests of the simulator itself.

mod mistakes;
mod scenarios;
mod seeds;
