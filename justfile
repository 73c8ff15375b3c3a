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

# Whole clusters from seeds: `just sim`, `just sim --config all --seeds 0..10000`, `just sim --replay 7 --trace`
sim *arguments:
    cargo run --release -p level-replicator-sim -- {{arguments}}

# How many seeds it takes to notice each mistake that can be planted: the table of docs/causality.md
mistakes:
    cargo run --release -p level-replicator-sim -- --mistakes --seeds 0..6000

# Cost over the number of replicas: writes docs/growth.md and docs/growth.svg
growth:
    cargo run --release -p level-replicator-sim -- --growth docs

# Kill a replica with SIGKILL while it writes and talks with two peers
kills count="1000":
    LEVEL_KILLS={{count}} cargo test --release -p level-replicator --test it killed:: -- --nocapture

# Bytes that nobody meant, for everything that reads a peer or the disk: 30 seconds a target
fuzz *arguments:
    cargo run --profile fuzz -p level-replicator-fuzz -- {{arguments}}

# Play the scenarios of the simulator; `just scenarios update` writes down what they say now
scenarios update="":
    {{ if update == "update" { "UPDATE_SCENARIOS=1" } else { "" } }} cargo test -p level-replicator-sim --test it scenarios

# Write the golden files anew, after a change of a format that is meant
golden:
    UPDATE_GOLDEN=1 cargo test -p level-replicator-core --test it wire_golden

# Real Redis clients against a daemon: redis-cli, redis-benchmark, redis-py, node-redis, ioredis
clients:
    cargo build --release
    crates/level-replicator-cli/clients/run "${CARGO_TARGET_DIR:-target}/release/level-replicator"

# The page in a real browser, and the metrics by Prometheus's reader; `just page docs/pictures` makes the pictures of the docs
page pictures="":
    cargo build --release
    crates/level-replicator-cli/clients/page "${CARGO_TARGET_DIR:-target}/release/level-replicator" {{pictures}}

# LevelDB as an engine, and an import of what Node wrote; needs its library, such as Debian's libleveldb-dev
leveldb:
    cargo clippy -p level-replicator -p level-replicator-cli --features leveldb --all-targets -- -D warnings
    cargo test -p level-replicator --features leveldb --lib leveldb
    cargo build -p level-replicator-cli --features leveldb
    crates/level-replicator-cli/clients/leveldb "${CARGO_TARGET_DIR:-target}/debug/level-replicator"

# Watch three replicas diverge and agree again
demo *arguments:
    cargo run --release -- demo {{arguments}}

# Measure against the bare engine
bench *arguments:
    cargo run --release -p level-replicator-bench -- {{arguments}}

# The documentation of the library
doc:
    cargo doc --workspace --no-deps --open
