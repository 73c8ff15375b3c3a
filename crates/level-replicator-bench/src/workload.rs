//! The data that every measure uses, the same in every run.

/// A key, random: keys come in random order.
pub(crate) type Key = [u8; 16];

/// A value that no compression makes smaller.
pub(crate) type Value = [u8; 100];

/// Bytes of one entry.
pub(crate) const ENTRY_BYTES: usize = size_of::<Key>() + size_of::<Value>();

const SEED: u64 = 7_682;

/// A number of keys, to be inserted and then updated.
pub(crate) struct Workload {
    inserted: Vec<Key>,
    updated: Vec<Key>,
}

impl Workload {
    pub(crate) fn new(keys: u32) -> Workload {
        let mut random = fastrand::Rng::with_seed(SEED);
        let inserted: Vec<Key> = (0..keys).map(|_| random.u128(..).to_be_bytes()).collect();
        let mut updated = inserted.clone();
        random.shuffle(&mut updated);
        Workload { inserted, updated }
    }

    /// Every key for the first time.
    pub(crate) fn inserts(&self) -> impl Iterator<Item = (Key, Value)> + '_ {
        with_values(&self.inserted, SEED + 1)
    }

    /// Every key once more, in another order and with another value.
    pub(crate) fn updates(&self) -> impl Iterator<Item = (Key, Value)> + '_ {
        with_values(&self.updated, SEED + 2)
    }
}

fn with_values(keys: &[Key], seed: u64) -> impl Iterator<Item = (Key, Value)> + '_ {
    let mut random = fastrand::Rng::with_seed(seed);
    keys.iter().map(move |&key| {
        let mut value = [0; size_of::<Value>()];
        random.fill(&mut value);
        (key, value)
    })
}

/// The key of a number in one of several spaces of keys, random as all keys are.
pub(crate) fn numbered_key(space: u64, number: u64) -> Key {
    let mut random = fastrand::Rng::with_seed(SEED ^ space << 48 ^ number);
    random.u128(..).to_be_bytes()
}

/// What is written under such a key; each tag is another value.
pub(crate) fn numbered_value(space: u64, number: u64, tag: u64) -> Value {
    let mut random = fastrand::Rng::with_seed(SEED ^ space << 48 ^ tag << 32 ^ number);
    let mut value = [0; size_of::<Value>()];
    random.fill(&mut value);
    value
}
