//! Whom the limits count as one: an IPv4 address, or an IPv6 network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An IPv4 address, or an IPv6 network of 64 bits: what one subscriber usually holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// An address; an IPv4-mapped IPv6 address is one too.
    V4(#[serde(with = "serde_bytes")] [u8; 4]),
    /// The first half of an address.
    V6(#[serde(with = "serde_bytes")] [u8; 8]),
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

    #[test]
    fn it_travels_by_the_name_of_its_kind_and_as_bytes() {
        for (text, packed) in [
            ("192.0.2.1", b"\x81\xa2V4\xc4\x04\xc0\x00\x02\x01".as_slice()),
            ("2001:db8:1:2::3", b"\x81\xa2V6\xc4\x08\x20\x01\x0d\xb8\x00\x01\x00\x02"),
        ] {
            let origin = Origin::of(text.parse().unwrap());
            assert_eq!(rmp_serde::to_vec_named(&origin).unwrap(), packed);
            assert_eq!(rmp_serde::from_slice::<Origin>(packed).unwrap(), origin);
        }
        let short = b"\x81\xa2V4\xc4\x03\xc0\x00\x02";
        assert!(rmp_serde::from_slice::<Origin>(short).is_err());
    }
}
