//! `invite`: a ticket for another machine.

use std::io::Write;

use level_replicator::{Secret, Ticket};

use super::{Failure, UsageError};
use crate::args::InviteArgs;
use crate::settings::{SECRET_VARIABLE, Surroundings, parse_address};

/// Longest name of a cluster: what the library takes.
const CLUSTER_BYTES_MAX: usize = 255;

pub(crate) fn run(args: &InviteArgs) -> Result<(), Failure> {
    let address = parse_address("--address", &args.address).map_err(UsageError)?;
    if address.port() == 0 {
        let text = "--address: nobody can be reached at port 0: name the port listened on";
        return Err(UsageError(text.to_owned()).into());
    }
    let len = args.cluster.len();
    if len == 0 || len > CLUSTER_BYTES_MAX {
        let text = format!("--cluster: a name of {len} bytes: choose 1 to {CLUSTER_BYTES_MAX}");
        return Err(UsageError(text).into());
    }
    let around = Surroundings::of_process().map_err(UsageError)?;
    let secret = match (&args.secret_file, around.secret) {
        (Some(path), _) => Secret::from_file(path)?,
        (None, Some(text)) => Secret::from_hex(&text)?,
        (None, None) => {
            let text = format!("--secret-file is missing, and {SECRET_VARIABLE} is not set");
            return Err(UsageError(text).into());
        }
    };
    let ticket = Ticket::new(args.cluster.clone(), address, secret);
    writeln!(std::io::stdout(), "{}", ticket.to_text())?;
    Ok(())
}
