//! `add-peer`, `drop-peer`, `pause`, `resume`: whom a running daemon talks with.

use super::{Failure, UsageError};
use crate::args::{DoorArgs, PeerArgs, SteerArgs};
use crate::door::Door;
use crate::settings::parse_address;

pub(crate) fn add_peer(args: &PeerArgs) -> Result<(), Failure> {
    tell_of(args, "add-peer", b"LR.ADDPEER")
}

pub(crate) fn drop_peer(args: &PeerArgs) -> Result<(), Failure> {
    tell_of(args, "drop-peer", b"LR.DROPPEER")
}

pub(crate) fn pause(args: &SteerArgs) -> Result<(), Failure> {
    tell(&args.door, "pause", &[b"LR.PAUSE"])
}

pub(crate) fn resume(args: &SteerArgs) -> Result<(), Failure> {
    tell(&args.door, "resume", &[b"LR.RESUME"])
}

fn tell_of(args: &PeerArgs, what: &str, command: &[u8]) -> Result<(), Failure> {
    let address = parse_address("HOST:PORT", &args.address).map_err(UsageError)?;
    tell(&args.door, what, &[command, address.as_str().as_bytes()])
}

fn tell(door: &DoorArgs, what: &str, words: &[&[u8]]) -> Result<(), Failure> {
    Door::daemon(door, what)?.call(words)?;
    Ok(())
}
