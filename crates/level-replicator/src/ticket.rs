//! Tickets: all that a replica needs to join a cluster, in one line.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use level_replicator_core::address::Address;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::secret::Secret;

/// What every ticket begins with; the number is the version of what follows.
const PREFIX: &str = "lr1:";

/// Longer than any ticket.
const TEXT_BYTES_MAX: usize = 1_024;

const CHECK_BYTES: usize = 4;

/// The name of a cluster, an address of a member, and the secret.
///
/// Whoever has it has everything: it is to be handed over as carefully as the secret itself. It does not
/// show in [`fmt::Debug`].
///
/// ```
/// use level_replicator::{Options, Secret, Ticket};
///
/// let ticket = Ticket::new("shop", "10.0.0.7:9000".parse()?, Secret::generate()?);
/// let text = ticket.to_text();
///
/// let received: Ticket = text.parse()?;
/// let options = Options::new().join(&received);
/// # let _ = options;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Ticket {
    cluster: String,
    address: Address,
    secret: Secret,
}

impl Ticket {
    /// A ticket for a cluster, one of whose members can be reached at an address.
    pub fn new(cluster: impl Into<String>, address: Address, secret: Secret) -> Ticket {
        Ticket {
            cluster: cluster.into(),
            address,
            secret,
        }
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Where one of its members can be reached.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The cluster's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The ticket as one word: `lr1:` and the rest in the URL-safe form of base 64.
    pub fn to_text(&self) -> String {
        let mut bytes = Zeroizing::new(Vec::new());
        for part in [self.cluster.as_bytes(), self.address.as_str().as_bytes()] {
            bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(self.secret.to_hex().as_bytes());
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes))
    }
}

/// Shows that a ticket was copied as a whole.
fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
    check
}

impl FromStr for Ticket {
    type Err = Error;

    /// Reads what [`Ticket::to_text`] wrote; white space around it is passed over.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTicket`] if it is none, or not whole. The text does not show in the error.
    fn from_str(text: &str) -> Result<Ticket, Error> {
        parse(text.trim()).ok_or(Error::InvalidTicket)
    }
}

fn parse(text: &str) -> Option<Ticket> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
    let bytes = Zeroizing::new(bytes);
    let (body, told) = bytes.split_last_chunk::<CHECK_BYTES>()?;
    if check(body) != *told {
        return None;
    }
    let (cluster, rest) = split_part(body)?;
    let (address, rest) = split_part(rest)?;
    let secret = Secret::from_hex(std::str::from_utf8(rest).ok()?).ok()?;
    Some(Ticket::new(cluster, address.parse().ok()?, secret))
}

fn split_part(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_its_text_and_no_change_of_it() {
        let secret = Secret::from_hex(&"ab".repeat(32)).expect("64 digits");
        let address = "10.0.0.7:9000".parse().expect("an address");
        let ticket = Ticket::new("shop", address, secret);
        let text = ticket.to_text();
        let read: Ticket = format!(" {text}\n").parse().expect("a ticket");
        assert_eq!(read.cluster(), "shop");
        assert_eq!(read.address().as_str(), "10.0.0.7:9000");
        assert_eq!(read.secret().to_hex(), "ab".repeat(32));

        for place in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[place] = if other[place] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).expect("letters");
            assert!(other.parse::<Ticket>().is_err(), "changed at {place}");
            assert!(text[..place].parse::<Ticket>().is_err(), "cut at {place}");
        }
        let error = format!("{text}A").parse::<Ticket>().expect_err("too long");
        assert!(!error.to_string().contains(&text[4..12]));
        assert_eq!(format!("{ticket:?}"), "Ticket(..)");
    }
}
