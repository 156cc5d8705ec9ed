//! The PROXY header, versions 1 and 2, that a proxy may send before the request.
//!
//! Pure, no I/O. The specification is "The PROXY protocol" of HAProxy; a complete header is taken
//! apart by the crate `ppp`, and this file finds out when it is complete.

use std::net::IpAddr;

use ppp::{v1, v2};

use crate::limits::MAX_HEAD_BYTES;

/// What the first bytes of a connection came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyHeader {
    /// It is not complete; read on.
    Incomplete,
    /// No PROXY header, or one that breaks the specification.
    Malformed,
    /// Complete.
    Complete {
        /// From where the proxy was connected to, an IPv4-mapped address as IPv4. `None` if it does
        /// not say: its own connection (`LOCAL`), `UNKNOWN`, or no address of the internet.
        from: Option<IpAddr>,
        /// Its length in bytes; what follows is the request.
        length: usize,
    },
}

/// Takes the PROXY header at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> ProxyHeader {
    if bytes.starts_with(&v2::PROTOCOL_PREFIX[..1]) { binary(bytes) } else { text(bytes) }
}

fn text(bytes: &[u8]) -> ProxyHeader {
    let start = &bytes[..bytes.len().min(V1_START.len())];
    if !V1_START.starts_with(start) {
        return ProxyHeader::Malformed;
    }
    // Only a whole line is handed on: a part of one that ends behind a blank would be refused.
    let line = &bytes[..bytes.len().min(V1_LONGEST)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        let may_go_on = line.len() < V1_LONGEST;
        return if may_go_on { ProxyHeader::Incomplete } else { ProxyHeader::Malformed };
    };
    let length = end + 1;
    // The parser takes a bare line feed behind what it does not read: an `UNKNOWN` line's rest.
    if !bytes[..length].ends_with(b"\r\n") {
        return ProxyHeader::Malformed;
    }
    let Ok(header) = v1::Header::try_from(&bytes[..length]) else { return ProxyHeader::Malformed };
    if header.header.len() != length {
        return ProxyHeader::Malformed;
    }
    let from = match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(IpAddr::V4(addresses.source_address)),
        v1::Addresses::Tcp6(addresses) => Some(IpAddr::V6(addresses.source_address)),
        v1::Addresses::Unknown => None,
    };
    ProxyHeader::Complete { from: from.map(|address| address.to_canonical()), length }
}

fn binary(bytes: &[u8]) -> ProxyHeader {
    let start = &bytes[..bytes.len().min(v2::PROTOCOL_PREFIX.len())];
    if !v2::PROTOCOL_PREFIX.starts_with(start) {
        return ProxyHeader::Malformed;
    }
    let Some([command, _, high, low]) = bytes.get(start.len()..V2_FIXED) else {
        return ProxyHeader::Incomplete;
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_HEAD_BYTES {
        return ProxyHeader::Malformed;
    }
    let Some(whole) = bytes.get(..length) else { return ProxyHeader::Incomplete };
    // The proxy's own connection, a health check for example: whatever else stands there is to be
    // ignored, the family included.
    if *command == V2_LOCAL {
        return ProxyHeader::Complete { from: None, length };
    }
    let Ok(header) = v2::Header::try_from(whole) else { return ProxyHeader::Malformed };
    let from = match header.addresses {
        v2::Addresses::IPv4(addresses) => Some(IpAddr::V4(addresses.source_address)),
        v2::Addresses::IPv6(addresses) => Some(IpAddr::V6(addresses.source_address)),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    };
    ProxyHeader::Complete { from: from.map(|address| address.to_canonical()), length }
}

/// How version 1 begins.
const V1_START: &[u8] = b"PROXY ";
/// The longest line of version 1 in bytes, its end included (specification, section 2.1).
const V1_LONGEST: usize = 107;
/// The part of version 2 that says how long the rest is, in bytes (section 2.2).
const V2_FIXED: usize = 16;
/// Version 2, command `LOCAL`.
const V2_LOCAL: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2: version and command, family and protocol, and what follows.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, rest].concat()
    }

    fn ipv4(source: [u8; 4]) -> Vec<u8> {
        [&source[..], &[192, 0, 2, 99], &4711_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    fn ipv6(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &4711_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    /// Good headers and the address in them.
    fn good() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let text = |line: &str| line.as_bytes().to_vec();
        let unix = [b'/'; 216];
        let extras = [ipv4([192, 0, 2, 1]), vec![0x04, 0, 3, 1, 2, 3], vec![0xee, 0, 0]].concat();
        vec![
            (text("PROXY TCP4 192.0.2.1 192.0.2.99 4711 443\r\n"), Some("192.0.2.1")),
            (text("PROXY TCP6 2001:db8::1 ::1 0 65535\r\n"), Some("2001:db8::1")),
            (text("PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 443\r\n"), Some("192.0.2.1")),
            (text("PROXY UNKNOWN\r\n"), None),
            (text("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"), None),
            (v2(0x21, 0x11, &ipv4([192, 0, 2, 1])), Some("192.0.2.1")),
            (v2(0x21, 0x12, &ipv4([192, 0, 2, 1])), Some("192.0.2.1")),
            (v2(0x21, 0x11, &extras), Some("192.0.2.1")),
            (v2(0x21, 0x21, &ipv6("2001:db8::1")), Some("2001:db8::1")),
            (v2(0x21, 0x21, &ipv6("::ffff:192.0.2.1")), Some("192.0.2.1")),
            (v2(0x21, 0x31, &unix), None),
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x00, b"whatever"), None),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, &ipv4([192, 0, 2, 1])), None),
            (v2(0x20, 0xff, b"\x01"), None),
        ]
    }

    #[test]
    fn a_header_is_found_at_any_cut_and_what_is_behind_it_is_left_alone() {
        for (header, address) in good() {
            let from = address.map(|text| text.parse().unwrap());
            let expected = ProxyHeader::Complete { from, length: header.len() };
            assert_eq!(parse(&header), expected, "{header:?}");
            for behind in [&b"GET / HTTP/1.1\r\n"[..], b"\r\n", b"\n", &header] {
                let all = [&header[..], behind].concat();
                assert_eq!(parse(&all), expected, "{header:?} and {behind:?}");
            }
            for cut in 0..header.len() {
                let part = &header[..cut];
                assert_eq!(parse(part), ProxyHeader::Incomplete, "{part:?}");
            }
        }
    }

    #[test]
    fn what_breaks_the_specification_is_malformed_and_found_as_early_as_possible() {
        let text = |line: &str| line.as_bytes().to_vec();
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        for bad in [
            text("GET /healthz HTTP/1.1\r\n"),
            text("Q"),
            text("PRoxy TCP4"),
            text("PROXY\r\n"),
            text("PROXY \r\n"),
            text("PROXY TCP4\r\n"),
            text("PROXY TCP4 192.0.2.1\r\n"),
            text("PROXY TCP4 192.0.2.1 192.0.2.99 4711\r\n"),
            text("PROXY TCP4 192.0.2.1 192.0.2.99 4711 443\n"),
            text("PROXY UNKNOWN 1 2\n"),
            text("PROXY TCP4 192.0.2.1 192.0.2.99 4711 443 1\r\n"),
            text("PROXY TCP4 192.0.2.1 192.0.2.99 4711 65536\r\n"),
            text("PROXY TCP4 192.0.2.1 192.0.2.99 04711 443\r\n"),
            text("PROXY TCP4  192.0.2.1 192.0.2.99 4711 443\r\n"),
            text("PROXY TCP4 192.0.2.01 192.0.2.99 4711 443\r\n"),
            text("PROXY TCP4 2001:db8::1 ::1 4711 443\r\n"),
            text("PROXY TCP6 192.0.2.1 192.0.2.99 4711 443\r\n"),
            text("PROXY UDP4 192.0.2.1 192.0.2.99 4711 443\r\n"),
            text("PROXY TCP4 \u{e9} 192.0.2.99 4711 443\r\n"),
            text(&long),
            text(&long[..107]),
            b"\r\n\r\n\0\r\nQUIT\r".to_vec(),
            b"\r\n\r\nGET".to_vec(),
            v2(0x11, 0x11, &ipv4([192, 0, 2, 1])),
            v2(0x22, 0x11, &ipv4([192, 0, 2, 1])),
            v2(0x21, 0x41, &ipv4([192, 0, 2, 1])),
            v2(0x21, 0x13, &ipv4([192, 0, 2, 1])),
            v2(0x21, 0x11, &ipv4([192, 0, 2, 1])[..11]),
            v2(0x21, 0x21, &ipv4([192, 0, 2, 1])),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x11, &[0; MAX_HEAD_BYTES])[..16].to_vec(),
        ] {
            assert_eq!(parse(&bad), ProxyHeader::Malformed, "{bad:?}");
        }
        assert_eq!(parse(&long.as_bytes()[..106]), ProxyHeader::Incomplete);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for (header, _) in good() {
            for at in 0..header.len() {
                for flip in [1, 0x10, 0x80, 0xff] {
                    let mut broken = header.clone();
                    broken[at] ^= flip;
                    if let ProxyHeader::Complete { length, .. } = parse(&broken) {
                        assert!(length <= broken.len());
                    }
                }
            }
        }
    }
}
