//! What proxies write about the way of a request: `X-Forwarded-For`, and `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address of whoever connected to it. So the hops are in order, the last
//! one is the nearest, and whatever a client made up itself stands before what proxies added.

use std::net::{IpAddr, Ipv6Addr};

/// One hop of the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// It came from this address; an IPv4-mapped one is IPv4.
    From(IpAddr),
    /// The proxy does not say from where: `unknown`, a name of its own (`_hidden`), or no `for`.
    Hidden,
    /// Neither an address nor a word that may stand in its place.
    Malformed,
}

/// The hops of the values of `X-Forwarded-For`, in order.
pub fn listed<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<Hop> {
    let members = values.flat_map(|value| value.split(|byte| *byte == b','));
    members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()).map(hop).collect()
}

/// The hops of the values of `Forwarded`, in order. A value that breaks the grammar is one
/// malformed hop: where its members end is anybody's guess.
pub fn forwarded<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<Hop> {
    values.flat_map(|value| elements(value).unwrap_or_else(|| vec![Hop::Malformed])).collect()
}

/// The hops of one value of `Forwarded` (RFC 7239 section 4); `None` if it breaks the grammar.
fn elements(value: &[u8]) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let mut rest = value;
    loop {
        let mut hop = None;
        let mut is_empty = true;
        // The pairs of one element.
        loop {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
            let name;
            (name, rest) = rest.split_at(end);
            if !name.is_empty() {
                is_empty = false;
                let node;
                (node, rest) = pair_value(rest.strip_prefix(b"=")?)?;
                if name.eq_ignore_ascii_case(b"for") && hop.replace(self::hop(&node)).is_some() {
                    return None;
                }
            }
            rest = rest.trim_ascii_start();
            match rest.split_first() {
                Some((b';', behind)) => rest = behind,
                Some((b',', _)) | None => break,
                Some(_) => return None,
            }
        }
        // RFC 9110 section 5.6.1: empty members of a list are ignored.
        if !is_empty {
            hops.push(hop.unwrap_or(Hop::Hidden));
        }
        match rest.split_first() {
            Some((_, behind)) => rest = behind,
            None => return Some(hops),
        }
    }
}

/// A token or a quoted string (RFC 9110 section 5.6), and what stands behind it.
fn pair_value(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = bytes.strip_prefix(b"\"") else {
        let end = bytes.iter().position(|byte| !is_token(*byte)).unwrap_or(bytes.len());
        let (token, rest) = bytes.split_at(end);
        return (!token.is_empty()).then(|| (token.to_vec(), rest));
    };
    let mut value = Vec::new();
    loop {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        match byte {
            b'"' => return Some((value, rest)),
            b'\\' => {
                let (escaped, behind) = rest.split_first()?;
                rest = behind;
                value.push(*escaped);
            }
            _ => value.push(*byte),
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An address, with or without a port, or a word in its place (RFC 7239 section 6).
fn hop(node: &[u8]) -> Hop {
    let Ok(text) = std::str::from_utf8(node) else { return Hop::Malformed };
    if let Some(address) = address(text) {
        return Hop::From(address.to_canonical());
    }
    let name = match text.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => text,
    };
    let obscure = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_obscure = name.len() > 1 && name.starts_with('_') && name.bytes().all(obscure);
    if is_obscure || name.eq_ignore_ascii_case("unknown") { Hop::Hidden } else { Hop::Malformed }
}

fn address(text: &str) -> Option<IpAddr> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (inside, behind) = bracketed.split_once(']')?;
        let port_fits = behind.is_empty() || behind.strip_prefix(':').is_some_and(is_port);
        return port_fits.then(|| ipv6(inside)).flatten();
    }
    if let Some(address) = ipv6(text) {
        return Some(address);
    }
    let host = match text.split_once(':') {
        Some((host, port)) if is_port(port) => host,
        Some(_) => return None,
        None => text,
    };
    host.parse().ok().map(IpAddr::V4)
}

/// The zone of a link-local address says nothing to anybody but the machine that wrote it.
fn ipv6(text: &str) -> Option<IpAddr> {
    let address = match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => address,
        Some(_) => return None,
        None => text,
    };
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// A port, or a name in its place.
fn is_port(text: &str) -> bool {
    let number = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let obscure = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    number || (text.len() > 1 && text.starts_with('_') && text.bytes().all(obscure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Hop {
        Hop::From(text.parse().unwrap())
    }

    fn listed_in(values: &[&str]) -> Vec<Hop> {
        listed(values.iter().map(|value| value.as_bytes()))
    }

    fn forwarded_in(values: &[&str]) -> Vec<Hop> {
        forwarded(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn an_address_is_read_in_every_way_that_proxies_write_it() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("192.0.2.1:_port", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:1", "192.0.2.1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%3]:80", "fe80::1"),
        ] {
            assert_eq!(hop(text.as_bytes()), from(expected), "{text}");
        }
    }

    #[test]
    fn a_word_in_the_place_of_an_address_hides_it_and_anything_else_is_malformed() {
        for text in ["unknown", "Unknown", "_hidden", "_SEVKISEK.1-2", "unknown:80", "_x:_y"] {
            assert_eq!(hop(text.as_bytes()), Hop::Hidden, "{text}");
        }
        for text in [
            "192.0.2",
            "192.0.2.256",
            "192.0.2.1.2",
            "192.0.2.01",
            "192.0.2.1:",
            "192.0.2.1:x",
            "192.0.2.1:123456",
            "1:2",
            "[192.0.2.1]",
            "[2001:db8::1",
            "[2001:db8::1]80",
            "2001:db8::1]",
            "2001:db8::g",
            "fe80::1%",
            "localhost",
            "example.org",
            "_",
            "_a b",
            "-",
            "0x7f000001",
            "127.1",
            " ",
            "\"192.0.2.1\"",
        ] {
            assert_eq!(hop(text.as_bytes()), Hop::Malformed, "{text}");
        }
        assert_eq!(hop(b"\xff"), Hop::Malformed);
    }

    #[test]
    fn a_list_is_read_in_order_over_several_fields_and_empty_members_are_skipped() {
        assert_eq!(listed_in(&[]), []);
        assert_eq!(listed_in(&["", " , ,"]), []);
        assert_eq!(
            listed_in(&["192.0.2.1, junk ,unknown", "2001:db8::1,,192.0.2.2"]),
            [
                from("192.0.2.1"),
                Hop::Malformed,
                Hop::Hidden,
                from("2001:db8::1"),
                from("192.0.2.2")
            ]
        );
    }

    #[test]
    fn forwarded_elements_are_read_by_their_grammar() {
        for (value, expected) in [
            ("for=192.0.2.1", vec![from("192.0.2.1")]),
            ("For=\"192.0.2.1:80\"", vec![from("192.0.2.1")]),
            ("for=\"[2001:db8::1]:4711\"", vec![from("2001:db8::1")]),
            ("proto=https;FOR=192.0.2.1;by=_x", vec![from("192.0.2.1")]),
            ("for=192.0.2.1, for=192.0.2.2", vec![from("192.0.2.1"), from("192.0.2.2")]),
            ("for=192.0.2.1,,proto=http ,", vec![from("192.0.2.1"), Hop::Hidden]),
            ("for=unknown;proto=http", vec![Hop::Hidden]),
            ("for=192.0.2.1;", vec![from("192.0.2.1")]),
            ("by=\"a, for=192.0.2.9\";for=192.0.2.1", vec![from("192.0.2.1")]),
            ("for=\"192.0.2\\.1\"", vec![from("192.0.2.1")]),
            ("for=x", vec![Hop::Malformed]),
            ("for=\"\"", vec![Hop::Malformed]),
            ("", vec![]),
        ] {
            assert_eq!(forwarded_in(&[value]), expected, "{value}");
        }
        for broken in [
            "for",
            "for=",
            "for =192.0.2.1",
            "for= 192.0.2.1",
            "for=\"192.0.2.1",
            "for=\"192.0.2.1\\",
            "for=192.0.2.1 for=192.0.2.2",
            "for=192.0.2.1;for=192.0.2.2",
            "for=[2001:db8::1]",
            "for=192.0.2.1:80",
            "192.0.2.1",
            "\"for\"=192.0.2.1",
        ] {
            assert_eq!(forwarded_in(&[broken]), [Hop::Malformed], "{broken}");
        }
    }

    #[test]
    fn a_quote_that_a_client_left_open_does_not_swallow_what_a_proxy_added() {
        for added in [", for=192.0.2.7", ", for=\"[2001:db8::1]\"", ", for=192.0.2.7;by=\"_x\""] {
            let value = format!("for=198.51.100.9;x=\"{added}");
            assert_eq!(forwarded_in(&[&value]), [Hop::Malformed], "{value}");
        }
        let separate = ["for=198.51.100.9;x=\"", "for=192.0.2.7"];
        assert_eq!(forwarded_in(&separate), [Hop::Malformed, from("192.0.2.7")]);
    }
}
