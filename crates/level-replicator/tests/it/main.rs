//! The library as programs use it: real files, real sockets, real processes.

mod ancestor;
mod api;
mod author;
mod backup;
mod changes;
mod child;
mod common;
mod crash;
mod damaged_files;
mod errors;
mod expiry;
mod histories;
mod killed;
mod loopback;
mod proxy;
mod refused;
mod sources;
mod wire;
