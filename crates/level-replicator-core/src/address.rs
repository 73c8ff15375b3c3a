//! Where a replica can be reached: `host:port`.

use std::fmt;
use std::str::FromStr;

use crate::limits::ADDRESS_BYTES_MAX;

/// A host name or IP address, and a TCP port.
///
/// Host names are resolved anew at each attempt to connect. IPv6 addresses stand in brackets.
///
/// ```
/// use level_replicator_core::address::Address;
///
/// let address: Address = "db1.example.net:9000".parse()?;
/// assert_eq!((address.host(), address.port()), ("db1.example.net", 9000));
/// assert!("db1.example.net".parse::<Address>().is_err());
/// # Ok::<(), level_replicator_core::address::AddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: String,
    colon: usize,
    port: u16,
}

/// A text that is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address: expected host:port with a port from 0 to 65535")]
pub struct AddressError {
    /// The text, cut to a readable length.
    pub text: String,
}

impl Address {
    /// The host name, or the IP address; IPv6 with its brackets.
    pub fn host(&self) -> &str {
        &self.text[..self.colon]
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address as `host:port`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the host stands for every interface of a machine and so leads nowhere from another one.
    pub fn is_unspecified(&self) -> bool {
        matches!(self.host(), "0.0.0.0" | "[::]")
    }

    /// Whether a connection can be tried: a real host and a port that is not 0.
    pub fn is_reachable(&self) -> bool {
        self.port != 0 && !self.is_unspecified()
    }

    /// The same port at another host.
    pub fn with_host_of(&self, other: &Address) -> Address {
        Address {
            text: format!("{}:{}", other.host(), self.port),
            colon: other.colon,
            port: self.port,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError {
            text: text.chars().take(80).collect(),
        };
        let colon = text.rfind(':').ok_or_else(refused)?;
        let (host, port) = (&text[..colon], &text[colon + 1..]);
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let host_is_good = !host.is_empty()
            && text.len() <= ADDRESS_BYTES_MAX
            && (bracketed || !host.contains(':'))
            && host.bytes().all(|byte| byte.is_ascii_graphic());
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if host_is_good && digits => Ok(Address {
                text: text.to_owned(),
                colon,
                port,
            }),
            _ => Err(refused()),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(socket: std::net::SocketAddr) -> Self {
        let text = socket.to_string();
        let colon = text.rfind(':').unwrap_or(text.len());
        let port = socket.port();
        Address { text, colon, port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_and_port_is_refused() {
        for text in [
            "",
            ":",
            ":9000",
            "host",
            "host:",
            "host:x",
            "host:+1",
            "host:65536",
            "a b:1",
            "::1:9000",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        for text in ["[::1]:9000", "10.0.0.1:0", "a:65535"] {
            assert!(text.parse::<Address>().is_ok(), "{text}");
        }
    }
}
