//! `secret`: a new secret for a cluster.

use std::io::Write;

use level_replicator::Secret;

use super::Failure;

pub(crate) fn run() -> Result<(), Failure> {
    let secret = Secret::generate()?;
    writeln!(std::io::stdout(), "{}", secret.to_hex())?;
    Ok(())
}
