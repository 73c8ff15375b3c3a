//! Feeds `level_replicator_fuzz::resp` what libFuzzer makes.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    level_replicator_fuzz::resp::run(input);
});
