//! Whom the limits count as one: an IPv4 address, or an IPv6 network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An IPv4 address, or an IPv6 network of 64 bits: what one subscriber usually holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// An address; an IPv4-mapped IPv6 address is one too.
    V4([u8; 4]),
    /// The first half of an address.
    V6([u8; 8]),
}

/// Whose it is in tests that do not care.
#[cfg(test)]
pub(crate) const NOBODY: Origin = Origin::V4([0; 4]);

impl Origin {
    /// The source that `address` belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        let source = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }
}
