//! A whole cluster of level-replicator in one thread, from a seed: the proof that anyone can run.
//!
//! The replicas are the ones of production, `level_replicator_core::replica::Replica`, with their
//! sessions, codec, scheduler and storage calls. Around them everything is simulated and can fail:
//! links, disks, clocks. An oracle that shares no logic with them says after every step what each
//! must hold. The same seed gives the same run, byte for byte.
//!
//! In reading order:

pub mod chance;

pub mod trace;

pub mod disk;

pub mod cluster;

pub mod oracle;

pub mod plan;

pub mod run;

pub mod minimize;

pub mod sweep;

pub mod catch;

pub mod growth;

pub mod script;
