//! Links to other processes: TCP, encrypted.

pub(crate) mod link;
mod noise;

pub(crate) use noise::{NoiseReader, NoiseWriter};
