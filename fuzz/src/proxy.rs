//! What proxies say about their clients: PROXY headers, `X-Forwarded-For` and `Forwarded`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use httparse::Header;
use pyrycode_relay::http::forwarded::{Hop, forwarded, listed};
use pyrycode_relay::http::proxies::{Proxies, parse_network};
use pyrycode_relay::http::proxy_header::{ProxyHeader, parse};

/// Takes the input as a PROXY header, and as values of the two fields, one a line.
pub fn run(data: &[u8]) {
    check_header(data);
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    check_list(&values);
    check_address(&values);
}

fn check_header(bytes: &[u8]) {
    let whole = parse(bytes);
    // It is told apart at the same byte, however it arrives.
    let mut decided = ProxyHeader::Incomplete;
    for end in 0..bytes.len().min(600) {
        let so_far = parse(&bytes[..end]);
        assert!(decided == ProxyHeader::Incomplete || decided == so_far, "{decided:?} {so_far:?}");
        decided = so_far;
    }
    assert!(decided == ProxyHeader::Incomplete || decided == whole, "{decided:?} {whole:?}");
    if let ProxyHeader::Complete { from, length } = whole {
        let header = &bytes[..length];
        let allowed = match header.strip_prefix(b"PROXY ") {
            Some(rest) => text(rest),
            None => binary(header),
        };
        assert_eq!(allowed, Some(from.map(|from| from.to_canonical())), "{header:?}");
        assert!(length <= 8192);
    }
    // The plainest form of version 1 passes.
    if let Some(end) = bytes.iter().position(|byte| *byte == b'\r') {
        if let Some((from, plain)) = plainest(&bytes[..end]) {
            if plain && bytes[end..].starts_with(b"\r\n") {
                assert_eq!(whole, ProxyHeader::Complete { from, length: end + 2 });
            }
        }
    }
}

/// The address of a line of version 1 behind its first word, if the specification allows the line.
fn text(rest: &[u8]) -> Option<Option<IpAddr>> {
    let line = std::str::from_utf8(rest).ok()?.strip_suffix("\r\n")?;
    if line.len() + 8 > 107 || line.contains(['\r', '\n']) {
        return None;
    }
    let words: Vec<_> = line.split(' ').collect();
    match words[..] {
        ["UNKNOWN", ..] => Some(None),
        ["TCP4", from, to, one, other] => {
            let (from, _): (Ipv4Addr, Ipv4Addr) = (from.parse().ok()?, to.parse().ok()?);
            let _: (u16, u16) = (one.parse().ok()?, other.parse().ok()?);
            Some(Some(IpAddr::V4(from)))
        }
        ["TCP6", from, to, one, other] => {
            let (from, _): (Ipv6Addr, Ipv6Addr) = (from.parse().ok()?, to.parse().ok()?);
            let _: (u16, u16) = (one.parse().ok()?, other.parse().ok()?);
            Some(Some(IpAddr::V6(from).to_canonical()))
        }
        _ => None,
    }
}

/// The same for a whole header of version 2.
fn binary(header: &[u8]) -> Option<Option<IpAddr>> {
    let rest = header.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let [command, family, high, low, rest @ ..] = rest else { return None };
    if rest.len() != usize::from(*high) << 8 | usize::from(*low) {
        return None;
    }
    match (command, family >> 4, family & 0x0f) {
        (0x20, ..) => Some(None),
        (0x21, 0, 0..=2) => Some(None),
        (0x21, 1, 0..=2) => {
            let octets: [u8; 4] = rest.get(..12)?[..4].try_into().ok()?;
            Some(Some(IpAddr::from(octets)))
        }
        (0x21, 2, 0..=2) => {
            let octets: [u8; 16] = rest.get(..36)?[..16].try_into().ok()?;
            Some(Some(IpAddr::from(octets).to_canonical()))
        }
        (0x21, 3, 0..=2) => rest.get(..216).map(|_| None),
        _ => None,
    }
}

/// The address of a line of version 1, and whether the line is as a machine writes it.
fn plainest(line: &[u8]) -> Option<(Option<IpAddr>, bool)> {
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("PROXY ")?;
    let from = text(format!("{rest}\r\n").as_bytes())??;
    let words: Vec<_> = rest.split(' ').collect();
    let same = |word: &str| {
        word.parse::<IpAddr>().is_ok_and(|address| address.to_string() == word)
            || word.parse::<u16>().is_ok_and(|port| port.to_string() == word)
    };
    Some((Some(from), words[1..].iter().all(|word| same(word))))
}

/// Hop by hop, the two fields agree with each other and with the standard library.
fn check_list(values: &[&[u8]]) {
    let hops = listed(values.iter().copied());
    let members: Vec<_> = values
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
        .collect();
    assert_eq!(hops.len(), members.len());
    for (hop, member) in hops.iter().zip(&members) {
        if let Ok(text) = std::str::from_utf8(member) {
            let address = text.parse::<IpAddr>();
            let address = address.or_else(|_| text.parse::<SocketAddr>().map(|with| with.ip()));
            match address {
                Ok(address) => assert_eq!(*hop, Hop::From(address.to_canonical()), "{text}"),
                Err(_) => assert!(
                    !matches!(hop, Hop::From(IpAddr::V4(_))) || text.contains([':', '_']),
                    "{hop:?} of {text}"
                ),
            }
        }
        let quoted = [b"For=\"".as_slice(), member, b"\"; proto=https"].concat();
        if !member.contains(&b'"') && !member.contains(&b'\\') {
            assert_eq!(forwarded([quoted.as_slice()].into_iter()), [*hop]);
        }
    }
}

/// The address is the nearest one that is no trusted proxy.
fn check_address(values: &[&[u8]]) {
    let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|text| parse_network(text).expect("good"));
    let proxies = Proxies::new(networks.to_vec(), false);
    let proxy = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    for name in ["X-Forwarded-For", "forwarded"] {
        let fields: Vec<_> = values.iter().map(|value| Header { name, value }).collect();
        let hops = match name {
            "forwarded" => forwarded(values.iter().copied()),
            _ => listed(values.iter().copied()),
        };
        let trusted = |hop: &&Hop| matches!(hop, Hop::From(address) if proxies.trusts(*address));
        let expected = match hops.iter().rev().find(|hop| !trusted(hop)) {
            Some(Hop::From(address)) => Ok(*address),
            Some(Hop::Hidden) => Ok(proxy),
            Some(Hop::Malformed) => Err(()),
            None => match hops.first() {
                Some(Hop::From(farthest)) => Ok(*farthest),
                _ => Ok(proxy),
            },
        };
        assert_eq!(proxies.behind(proxy, &fields).map_err(|_| ()), expected, "{hops:?}");
    }
}
