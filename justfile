# Everything one can do here. `just` lists it; each line also works when typed by hand.

_default:
    @just --list

# Format, lints, docs and tests: before every push
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo test --workspace

# The tests, by nextest where it is installed
test:
    cargo nextest run --workspace && cargo test --workspace --doc

# Random schedules with an oracle: seeds FROM up to, without, TO
schedules from="0" to="20000":
    LEVEL_SEEDS={{from}}..{{to}} cargo test --release -p level-replicator-core --test it random_schedules

# Kill a replica with SIGKILL while it writes and talks with two peers
kills count="1000":
    LEVEL_KILLS={{count}} cargo test --release -p level-replicator --test it killed:: -- --nocapture

# Bytes that nobody meant, for everything that reads a peer or the disk: 30 seconds a target
fuzz *arguments:
    cargo run --profile fuzz -p level-replicator-fuzz -- {{arguments}}

# Write the golden files anew, after a change of a format that is meant
golden:
    UPDATE_GOLDEN=1 cargo test -p level-replicator-core --test it wire_golden

# Watch three replicas diverge and agree again
demo *arguments:
    cargo run --release -- demo {{arguments}}

# Measure against the bare engine
bench *arguments:
    cargo run --release -p level-replicator-bench -- {{arguments}}

# The documentation of the library
doc:
    cargo doc --workspace --no-deps --open
