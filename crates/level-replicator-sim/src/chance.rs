//! Chance that is the same in every run: each source has a seed of its own, made from the run's seed
//! and what it is for, so that taking one action out of a run leaves the rest of it as it was.

use xxhash_rust::xxh3::xxh3_64;

/// A source of chance for a purpose named by numbers.
pub fn chance(seed: u64, purpose: &[u64]) -> fastrand::Rng {
    let mut bytes = seed.to_le_bytes().to_vec();
    for number in purpose {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    fastrand::Rng::with_seed(xxh3_64(&bytes))
}

/// Whether something happens that does so `percent` times of a hundred.
pub fn percent(chance: &mut fastrand::Rng, percent: u32) -> bool {
    chance.u32(..100) < percent
}
