//! Engines that hold a replica on disk.

pub mod fjall;
