//! The `level-replicator` tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    level_replicator_cli::main()
}
