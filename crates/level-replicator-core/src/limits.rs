//! Every bound of the protocol and the storage, with its reason.
//!
//! What a peer, a disk or a caller can make us allocate is limited by a constant here or by a field
//! of [`Config`](crate::config::Config) that starts from one.

/// Longest key in bytes, inclusive: the engine takes 65,536 with its table prefix; the rest is reserve.
pub const KEY_BYTES_MAX: usize = 65_000;

/// Longest value in bytes, inclusive, unless an option raises it: 8 MiB.
pub const VALUE_BYTES_MAX: usize = 8 << 20;

/// The most that the option for the longest value accepts: 64 MiB.
pub const VALUE_BYTES_CEILING: usize = 64 << 20;

/// Largest sum of keys and values in one batch, inclusive: it is held in memory until it is committed.
pub const BATCH_BYTES_MAX: usize = 256 << 20;

/// Most operations in one batch, inclusive.
pub const BATCH_OPS_MAX: usize = 1_000_000;

/// Siblings of the largest value that one record may carry over the wire. A record cannot be split
/// without losing its causal meaning, so this bounds the memory of one conversation.
pub const RECORD_VALUES_MAX: usize = 32;

/// Most live versions that one record may hold when it arrives: one per concurrent writer.
pub const SIBLINGS_MAX: usize = 65_536;

/// Largest payload of a frame in bytes, inclusive, before and after compression: 256 KiB.
pub const FRAME_PAYLOAD_MAX: usize = 256 << 10;

/// Payload at which a frame of records is sent: small enough that applying it keeps no local writer
/// waiting for long, large enough that the cost per frame vanishes.
pub const RECORDS_FRAME_TARGET: usize = 64 << 10;

/// Payload from which compression is tried: smaller ones are dominated by fixed costs.
pub const COMPRESS_FROM: usize = 1 << 10;

/// Bytes of all keys in one message of records: keys that share their prefix with the one before
/// are small on the wire, and must not unfold to many times the frame.
pub const KEYS_PER_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Writers named by one `Writers` message: keeps it well below a frame.
pub const DESCRIPTORS_PER_MESSAGE: usize = 4_096;

/// Entries and ranges in one `Clock` or `Applied` message: keeps it well below a frame.
pub const HEADS_PER_MESSAGE: usize = 8_192;

/// Writers in a peer's clock: one for each time that a replica was opened and written to, ever.
pub const CLOCK_WRITERS_MAX: usize = 1 << 20;

/// Ranges ahead of the bases in a peer's clock, over all writers: gaps arise while a catch-up that was
/// cut waits to be continued, at most one for each write of the writer that still counts.
pub const CLOCK_RANGES_MAX: usize = 1 << 24;

/// Writers of whom a claim may say that half a batch of theirs may be held. Beyond that readers of
/// the receiver may see half a batch without being warned; nothing else depends on it.
pub const UNCLAIMED_PER_MESSAGE: usize = 16_384;

/// Longest name of a cluster in bytes, inclusive.
pub const CLUSTER_BYTES_MAX: usize = 255;

/// Longest `host:port` in bytes, inclusive: a DNS name has at most 253 characters.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Addresses that peers tell each other in one message.
pub const ADDRESSES_PER_MESSAGE: usize = 256;

/// Addresses kept in the table of peers: more than the largest cluster this store is made for.
pub const PEERS_MAX: usize = 1_024;

/// Bytes that wait in one link for the rest of their frame.
pub const LINK_BUFFER_MAX: usize = 2 * (FRAME_PAYLOAD_MAX + 64);

/// Largest discovery datagram in bytes: fits one Ethernet frame.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 512;

/// Greatest stamp, in microseconds since 1970: seven bytes on disk, the year 4253.
pub const STAMP_MAX: u64 = (1 << 56) - 1;

/// How far a peer's stamp may be ahead of our clock before [`Event::ClockSkew`](crate::event::Event) says so,
/// in microseconds: five minutes, more than any kept clock is off.
pub const SKEW_NOTICE_US: u64 = 5 * 60 * 1_000_000;

/// Members of a cluster, the retired ones too: far more than the largest cluster this store is made for.
pub const MEMBERS_MAX: usize = 4_096;

/// Members named by one `Cluster` message: keeps it well below a frame.
pub const MEMBERS_PER_MESSAGE: usize = 1_024;

/// Keys in one range that is compared at once, unless an option changes it. A fingerprint of one range costs about forty bytes,
/// a range that differs eight bytes for each of its keys.
pub const RANGE_KEYS: usize = 256;

/// Bytes of keys, or of records, at which a range that is compared at once ends.
pub const RANGE_BYTES: usize = 64 << 10;

/// Ranges that wait for the peer's answer: enough to keep both sides at work over a slow line.
pub const RANGES_PENDING: usize = 32;

/// Ranges that are settled before the leader says so, unless an option changes it: it costs about twenty
/// bytes, and what was not said is compared again after a cut.
pub const RANGES_PER_REACHED: usize = 16;

/// Bytes that a peer sends in one round, about, between two times that the storage is asked to let go of
/// what it gathers in memory: bounds its memory, and what the next open finds in its journal.
pub const RELIEVE_BYTES: usize = 8 << 20;

/// How often the leader says so before a follower that has nothing to write writes that down.
pub const REACHED_PER_COMMIT: usize = 4;

/// Items of one range that its receiver lists at once; it lists more in several parts.
pub const LIST_ITEMS_MAX: usize = 1_024;

/// What one step of reclaiming may cost: keeps local writers waiting for about a millisecond.
pub const RECLAIM_STEP: usize = 1_024;

/// What it costs to look at a record, when an entry of the log that leads to none costs 1.
pub const RECLAIM_RECORD_COST: usize = 8;

/// Expired values that are deleted in one step: keeps local writers waiting for about a millisecond.
pub const EXPIRY_STEP: usize = 128;

/// Expired values of others that are looked at in one step, to see whether their owner is gone.
pub const EXPIRY_LOOK: usize = 1_024;

/// Keys whose records one replica asks of another at once, because its own cannot be read.
pub const WANTED_KEYS_MAX: usize = 3;

/// Damaged keys that are remembered, to ask peers for them; a scan finds the others again.
pub const DAMAGED_KEYS_MAX: usize = 1_024;

/// Ends of our own links that are remembered, to know a link to ourselves: it says hello at once.
pub const LINK_TOKENS_MAX: usize = 256;
