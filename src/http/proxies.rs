//! The proxies that are trusted to say from where a connection comes.

use std::net::IpAddr;

use httparse::Header;
use ipnet::{IpNet, Ipv4Net};

use crate::http::forwarded::{Hop, forwarded, listed};

/// The addresses of the trusted proxies, and whether they send a PROXY header.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Proxies {
    networks: Vec<IpNet>,
    send_header: bool,
}

/// Why the fields of a trusted proxy do not say where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A hop is neither an address nor a word in its place.
    Malformed,
    /// `X-Forwarded-For` and `Forwarded` name different addresses.
    Contradiction,
}

impl Proxies {
    /// Those in `networks`; with `send_header` each sends a PROXY header before the request.
    pub fn new(networks: Vec<IpNet>, send_header: bool) -> Self {
        Self { networks, send_header }
    }

    /// Their networks.
    pub(crate) fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Whether each of them sends a PROXY header.
    pub(crate) fn send_header(&self) -> bool {
        self.send_header
    }

    /// Whether whoever connects from `address` is one of them.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether a PROXY header comes first on a connection from `address`.
    pub fn send_header_from(&self, address: IpAddr) -> bool {
        self.send_header && self.trusts(address)
    }

    /// Refuses networks that are small one by one, and together are too wide. The error is a
    /// sentence for the operator.
    pub fn check_width(&self) -> Result<(), String> {
        match IpNet::aggregate(&self.networks).iter().find(|network| is_too_wide(network)) {
            Some(all) => Err(format!("--trusted-proxy covers all of {all}: {TOO_WIDE}")),
            None => Ok(()),
        }
    }

    /// Whether PROXY headers are expected, and from no address at all.
    pub(crate) fn send_header_from_nobody(&self) -> bool {
        self.send_header && self.networks.is_empty()
    }

    /// The address from where a request came to the trusted proxy `proxy`, by its header fields:
    /// the nearest hop that is no trusted proxy, or else the farthest. It is the proxy's own
    /// address if no field tells.
    ///
    /// Most proxies append to one of the two fields and pass on the other as the client wrote it.
    /// So a client can make them differ. To take the proxy's own address then would let one client
    /// use up the allowance that the proxy has for itself.
    pub fn behind(&self, proxy: IpAddr, fields: &[Header<'_>]) -> Result<IpAddr, Fault> {
        let values = |name: &'static str| {
            let named = move |field: &&Header<'_>| field.name.eq_ignore_ascii_case(name);
            fields.iter().filter(named).map(|field| field.value)
        };
        let listed = self.nearest_stranger(&listed(values("X-Forwarded-For")))?;
        let forwarded = self.nearest_stranger(&forwarded(values("Forwarded")))?;
        match (listed, forwarded) {
            (Some(one), Some(other)) if one != other => Err(Fault::Contradiction),
            (listed, forwarded) => Ok(listed.or(forwarded).flatten().unwrap_or(proxy)),
        }
    }

    /// The address behind the trusted proxies, if there are hops at all; `Some(None)` if a proxy
    /// hides it.
    fn nearest_stranger(&self, hops: &[Hop]) -> Result<Option<Option<IpAddr>>, Fault> {
        let mut farthest = None;
        for hop in hops.iter().rev() {
            match hop {
                Hop::From(address) if self.trusts(*address) => farthest = Some(Some(*address)),
                Hop::From(address) => return Ok(Some(Some(*address))),
                Hop::Hidden => return Ok(Some(None)),
                Hop::Malformed => return Err(Fault::Malformed),
            }
        }
        Ok(farthest)
    }
}

/// Reads a network as `10.0.0.0/8` or `2001:db8::/32`, or a single address. One of IPv4-mapped
/// addresses is one of IPv4 ones. The error is a sentence for the operator.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text
            .parse::<IpNet>()
            .map_err(|_| "write an address or a network, such as 127.0.0.1 or 10.0.0.0/8")?,
    };
    let network = match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => {
            let mapped = v6.addr().to_ipv4_mapped();
            let v4 = mapped.and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).ok());
            v4.map_or(network, IpNet::V4)
        }
        other => other,
    };
    let network = network.trunc();
    if is_too_wide(&network) { Err(TOO_WIDE.to_owned()) } else { Ok(network) }
}

/// Whether a network holds more than the proxies of anybody. The widest private ones are allowed:
/// `10.0.0.0/8`, and `fc00::/7` (RFC 4193).
fn is_too_wide(network: &IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < WIDEST_V4,
        IpNet::V6(v6) if v6.addr().is_unique_local() => v6.prefix_len() < UNIQUE_LOCAL,
        IpNet::V6(v6) => v6.prefix_len() < WIDEST_V6,
    }
}

const TOO_WIDE: &str = "nearly everybody would be trusted, and could name any address: name networks of /8 or smaller, \
     in IPv6 of /16 or smaller";
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;
const UNIQUE_LOCAL: u8 = 7;

/// How an IPv4-mapped IPv6 address begins: with so many bits that say so.
const MAPPED_BITS: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(networks: &[&str]) -> Proxies {
        Proxies::new(networks.iter().map(|text| parse_network(text).unwrap()).collect(), false)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_as_people_write_them() {
        for (text, inside, outside) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.1", "11.0.0.0"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
            ("::/96", "::1", "::1:0:0:1"),
            ("fc00::/7", "fdff::1", "fe00::1"),
            ("2001::/16", "2001:ffff::1", "2002::1"),
        ] {
            let trusted = proxies(&[text]);
            assert!(trusted.trusts(ip(inside)), "{text} {inside}");
            assert!(!trusted.trusts(ip(outside)), "{text} {outside}");
        }
        for (bad, reason) in [
            ("", "write an address"),
            ("localhost", "write an address"),
            ("10.0.0.0/33", "write an address"),
            ("10.0.0/8", "write an address"),
            ("10.0.0.1:80", "write an address"),
            (" 10.0.0.1", "write an address"),
            ("0.0.0.0/0", "everybody"),
            ("0.0.0.0/1", "everybody"),
            ("10.0.0.0/7", "everybody"),
            ("::/0", "everybody"),
            ("2000::/3", "everybody"),
            ("2001::/15", "everybody"),
            ("fc00::/6", "everybody"),
            ("::ffff:0.0.0.0/96", "everybody"),
            ("::ffff:128.0.0.0/97", "everybody"),
        ] {
            let error = parse_network(bad).unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn networks_that_together_are_too_wide_are_refused() {
        let eighths = |range: std::ops::RangeInclusive<u8>| {
            let networks: Vec<_> = range.map(|first| format!("{first}.0.0.0/8")).collect();
            let networks: Vec<_> = networks.iter().map(String::as_str).collect();
            proxies(&networks).check_width()
        };
        for range in [0..=255, 128..=255, 10..=11] {
            let error = eighths(range).unwrap_err();
            assert!(error.starts_with("--trusted-proxy") && error.contains("/8"), "{error}");
        }
        assert_eq!(eighths(9..=10), Ok(()), "two neighbours that are no network");
        let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fd00::/8"];
        assert_eq!(proxies(&private).check_width(), Ok(()));
        assert_eq!(proxies(&[&private[..], &["fc00::/8", "::1"]].concat()).check_width(), Ok(()));
        assert_eq!(proxies(&["2001::/17", "2001:8000::/17"]).check_width(), Ok(()));
        assert!(proxies(&["2000::/16", "2001::/16"]).check_width().is_err());
    }

    #[test]
    fn the_address_is_the_nearest_that_is_no_trusted_proxy() {
        let trusted = proxies(&["127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48"]);
        let proxy = ip("127.0.0.1");
        let (list, element) = ("X-Forwarded-For", "Forwarded");
        let stranger = Ok(ip("192.0.2.1"));
        for (fields, expected) in [
            (&[][..], Ok(proxy)),
            (&[(list, "192.0.2.1")], stranger),
            (&[("x-forwarded-FOR", "192.0.2.1")], stranger),
            (&[(list, "198.51.100.9, 192.0.2.1")], stranger),
            (&[(list, "junk, 192.0.2.1")], stranger),
            (&[(list, "192.0.2.1, 10.0.0.7, 10.0.0.8")], stranger),
            (&[(list, "192.0.2.1:5, [2001:db8:1::9]:80")], stranger),
            (&[(list, "192.0.2.1"), (list, "10.0.0.7")], stranger),
            (&[(list, "10.0.0.7"), (list, "192.0.2.1")], stranger),
            (&[(list, "10.0.0.7, 10.0.0.8")], Ok(ip("10.0.0.7"))),
            (&[(list, "")], Ok(proxy)),
            (&[(list, "192.0.2.1, unknown")], Ok(proxy)),
            (&[(list, "192.0.2.1, junk")], Err(Fault::Malformed)),
            (&[(list, "192.0.2.1, junk, 10.0.0.7")], Err(Fault::Malformed)),
            (&[(element, "for=192.0.2.1")], stranger),
            (&[(element, "for=198.51.100.9, for=192.0.2.1;by=10.0.0.1, for=10.0.0.7")], stranger),
            (&[(element, "for=_me")], Ok(proxy)),
            (&[(element, "proto=https")], Ok(proxy)),
            (&[(element, "for=192.0.2.1, for")], Err(Fault::Malformed)),
            (&[(element, "for=192.0.2.1"), (list, "192.0.2.1")], stranger),
            // What a client made up in the field that the proxy does not know about.
            (&[(element, "for=198.51.100.9"), (list, "192.0.2.1")], Err(Fault::Contradiction)),
            (&[(element, "for=192.0.2.1"), (list, "198.51.100.9")], Err(Fault::Contradiction)),
            (&[(element, "for=unknown"), (list, "192.0.2.1")], Err(Fault::Contradiction)),
            (&[(element, "for=10.0.0.7"), (list, "192.0.2.1")], Err(Fault::Contradiction)),
            (&[(element, "for=192.0.2.1"), (list, "junk")], Err(Fault::Malformed)),
            (&[(element, "for"), (list, "192.0.2.1")], Err(Fault::Malformed)),
            (&[("X-Real-IP", "198.51.100.9")], Ok(proxy)),
        ] {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| Header { name, value: value.as_bytes() })
                .collect();
            assert_eq!(trusted.behind(proxy, &fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn nobody_is_trusted_by_default_and_headers_come_from_the_trusted_alone() {
        let nobody = Proxies::default();
        assert!(!nobody.trusts(ip("127.0.0.1")) && !nobody.send_header_from(ip("127.0.0.1")));
        let some = Proxies::new(vec![parse_network("127.0.0.1").unwrap()], true);
        assert!(some.send_header_from(ip("127.0.0.1")) && !some.send_header_from(ip("127.0.0.2")));
        assert!(!proxies(&["127.0.0.1"]).send_header_from(ip("127.0.0.1")));
    }
}
