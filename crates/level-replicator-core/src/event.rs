//! What a replica tells its program.

use crate::address::Address;
use crate::clock::{Dot, ReplicaId, WriterId};
use crate::record::Key;
use crate::session::PeerError;
use crate::state::ChangeKind;

/// Something that happened. Events inform; nothing depends on their being read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Connections are accepted at this address.
    Listening {
        /// The address with the port that was really taken.
        address: Address,
    },
    /// We reached out, and a peer answered.
    Connect {
        /// Who answered.
        peer: Peer,
    },
    /// A peer reached us.
    Connection {
        /// Who it was.
        peer: Peer,
    },
    /// An address of a possible peer was learned.
    PeerDiscovered {
        /// The address.
        address: Address,
        /// Who told of it.
        by: Discovery,
    },
    /// An address that was learned has been silent for so long that it was forgotten.
    PeerLost {
        /// The address.
        address: Address,
    },
    /// Both sides know all that either knew when the exchange began.
    Synced {
        /// With whom.
        peer: Peer,
        /// Records sent since the last such event of this conversation.
        sent: u64,
        /// Records received since then.
        received: u64,
    },
    /// What readers see of a key may have changed.
    Change {
        /// The key.
        key: Key,
        /// Who changed it.
        origin: Origin,
        /// What became of it.
        kind: ChangeKind,
    },
    /// A key now has two or more concurrent values.
    Conflict {
        /// The key.
        key: Key,
    },
    /// Something went wrong; the replica goes on.
    Error {
        /// With which peer, as far as that is known.
        address: Option<Address>,
        /// What.
        error: PeerError,
    },
    /// A peer's write carries a stamp far ahead of our clock. Only ties between concurrent writes suffer.
    ClockSkew {
        /// Who sent the write.
        peer: Peer,
        /// How far its stamp is ahead, in milliseconds.
        ahead_ms: u64,
    },
    /// Equal clocks, different contents: something is damaged on one of the two sides, or was written
    /// under one name by two processes. Both sides write again what the other lacks; nothing is deleted.
    Divergence {
        /// Who holds something else.
        peer: Peer,
        /// The key, once the comparison has found it; `None` when only the difference is known.
        key: Option<Key>,
        /// Our values of the key, by their dots.
        ours: Vec<Dot>,
        /// The peer's values of the key, by their dots.
        theirs: Vec<Dot>,
    },
    /// Two processes wrote under one writer's name, because a machine's memory was resumed twice. Ours
    /// writes under a new one from now on, and has written its values again.
    WriterCollision {
        /// The name that is not used here any more.
        writer: WriterId,
        /// How many keys were written again.
        keys: u64,
    },
    /// This replica took a new name: its old one was retired, or a copy of its directory runs too.
    Renamed {
        /// What it was called.
        before: ReplicaId,
        /// What it is called from now on.
        now: ReplicaId,
    },
    /// A member was silent for the horizon. Nothing waits for it any more until it comes back.
    Excluded {
        /// Which.
        replica: ReplicaId,
    },
    /// A heal was cut, and nobody who could finish it has been heard of since. This replica goes on with
    /// what it has; a value that was replaced may appear again beside what replaced it.
    Promoted,
    /// What was known here was damaged on disk, and was rebuilt from the data at the open.
    Rebuilt {
        /// What was damaged.
        damage: String,
    },
    /// The program read too slowly, and this many events were dropped here.
    Missed {
        /// How many.
        count: u64,
    },
}

/// The other side of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub replica: ReplicaId,
    /// The address it was reached at, or came from.
    pub address: Address,
}

/// Who changed a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A write on this replica.
    Local,
    /// A conversation with this replica. It may have passed on the write of another.
    Peer(ReplicaId),
}

/// How an address became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// Named by the program or the configuration.
    Named,
    /// Told by a source of peers: a name, a file, a command, or one of the program's own.
    Source,
    /// Announced on the local network.
    Multicast,
    /// Told by another peer.
    Peer,
}
