//! Feeds `level_replicator_fuzz::frame` what libFuzzer makes.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    level_replicator_fuzz::frame::run(input);
});
