//! Pure: the names, addresses and URLs that certificates are ordered with, checked before anything is
//! asked of a directory.

use std::net::IpAddr;

/// A name that a certificate can be for, in small letters: a DNS name (RFC 1123), no wildcard, no
/// address. The error is a sentence for the operator.
pub(crate) fn domain(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let refused = |why: &str| Err(why.to_owned());
    if name.is_empty() {
        return refused("a domain name is missing");
    }
    if !name.is_ascii() {
        return refused("write an international name in its ASCII form, which begins with xn--");
    }
    if name.starts_with("*.") {
        return refused(
            "a wildcard needs a check by DNS, which is not done here; name each domain",
        );
    }
    if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
        return refused("an address is no domain name");
    }
    if name.ends_with('.') {
        return refused("write the domain name without the dot at its end");
    }
    if name.len() > MAX_NAME_BYTES {
        return refused("a domain name has at most 253 characters");
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.split('.').all(is_label) {
        return refused("a domain name is made of letters, digits and hyphens, with dots between");
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return refused("the last part of a domain name is no number");
    }
    Ok(name)
}

/// An e-mail address, with or without `mailto:`, as the URL that a directory is told. The error is a
/// sentence for the operator.
pub(crate) fn contact(text: &str) -> Result<String, String> {
    let address = match text.split_at_checked(MAILTO.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(MAILTO) => rest,
        _ => text,
    };
    let refused = || Err("that is no e-mail address such as admin@example.org".to_owned());
    let Some((local, host)) = address.rsplit_once('@') else { return refused() };
    // A directory takes one address a contact, without header fields (RFC 8555, 7.3); what stands
    // unquoted in front of an @ is in RFC 5322, 3.2.3.
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-/=^_`{|}~.".contains(&byte);
    if local.is_empty() || local.len() > 64 || !local.bytes().all(is_local) || domain(host).is_err()
    {
        return refused();
    }
    Ok(format!("{MAILTO}{local}@{}", host.to_ascii_lowercase()))
}

/// The URL of a directory: `https` and no user in it. The error is a sentence for the operator.
pub(crate) fn directory(text: &str) -> Result<String, String> {
    let refused = |why: &str| Err(why.to_owned());
    let rest = match text.split_at_checked(HTTPS.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(HTTPS) => rest,
        _ => return refused("the URL of a directory begins with https://"),
    };
    if !rest.bytes().all(|byte| byte.is_ascii_graphic())
        || rest.contains(['#', '"', '<', '>', '\\'])
    {
        return refused("the URL has a character that does not belong into one");
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return refused("the URL of a directory has no user in it");
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) || port.starts_with('+') {
                return refused("the port in the URL is a number up to 65535");
            }
            host
        }
        _ => authority,
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if domain(host).is_err() && address.parse::<IpAddr>().is_err() {
        return refused("the URL of a directory has a host in it, such as https://ca.example.org/");
    }
    Ok(format!("{HTTPS}{}{path}", authority.to_ascii_lowercase()))
}

const HTTPS: &str = "https://";
const MAILTO: &str = "mailto:";
/// RFC 1035, 2.3.4, without the byte of the root.
const MAX_NAME_BYTES: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_dns_name_in_small_letters() {
        for (text, name) in [
            ("relay.example.org", "relay.example.org"),
            ("Relay.EXAMPLE.org", "relay.example.org"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1and1.de", "1and1.de"),
            ("localhost", "localhost"),
            ("a-b.c", "a-b.c"),
        ] {
            assert_eq!(domain(text).as_deref(), Ok(name));
        }
        let labels = ["a"; 127].join(".");
        assert_eq!(domain(&labels).as_deref(), Ok(&*labels), "253 characters");
    }

    #[test]
    fn what_no_certificate_can_be_ordered_for_is_refused_and_why_is_said() {
        let (long, label) =
            (format!("{}.b.c", ["a"; 126].join(".")), format!("{}.de", "a".repeat(64)));
        for (text, why) in [
            ("", "missing"),
            ("*.example.org", "wildcard"),
            ("192.0.2.1", "address"),
            ("2001:db8::1", "address"),
            ("[2001:db8::1]", "address"),
            ("1.2.3", "number"),
            ("relay.example.org.", "dot at its end"),
            ("b\u{fc}cher.example", "xn--"),
            ("a..b", "letters"),
            (".a", "letters"),
            ("-a.b", "letters"),
            ("a-.b", "letters"),
            ("a_b.c", "letters"),
            ("a b", "letters"),
            ("a,b", "letters"),
            ("a.b:443", "letters"),
            ("https://a.b", "letters"),
            ("a.*.b", "letters"),
            ("a\nb", "letters"),
            (&long, "253"),
            (&label, "letters"),
        ] {
            let error = domain(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_contact_is_one_address_and_becomes_a_url() {
        for text in ["admin@example.org", "mailto:admin@example.org", "MAILTO:admin@Example.org"] {
            assert_eq!(contact(text).as_deref(), Ok("mailto:admin@example.org"));
        }
        assert_eq!(contact("A.b+c@d.e").as_deref(), Ok("mailto:A.b+c@d.e"));
        let long = format!("{}@a.b", "x".repeat(65));
        for text in [
            "",
            "admin",
            "@a.b",
            "a@",
            "a@b@c d",
            "a b@c.d",
            "a@[192.0.2.1]",
            "a@192.0.2.1",
            "a@b.c?subject=x",
            "a@b.c,d@e.f",
            "a,b@c.d",
            "tel:+49123",
            "mailto:",
            "a%40b@c.d",
            "\u{fc}@a.b",
            "a@b\n.c",
            &long,
        ] {
            assert!(contact(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_directory_is_reached_by_https_alone() {
        for (text, url) in [
            ("https://ca.example.org/directory", "https://ca.example.org/directory"),
            ("HTTPS://CA.example.org/Dir?x=Y", "https://ca.example.org/Dir?x=Y"),
            ("https://localhost:14000/dir", "https://localhost:14000/dir"),
            ("https://192.0.2.1/dir", "https://192.0.2.1/dir"),
            ("https://[2001:db8::1]:8443/dir", "https://[2001:db8::1]:8443/dir"),
            ("https://[2001:db8::1]/dir", "https://[2001:db8::1]/dir"),
            ("https://ca.example.org", "https://ca.example.org"),
        ] {
            assert_eq!(directory(text).as_deref(), Ok(url));
        }
        for (text, why) in [
            ("", "begins with https://"),
            ("http://ca.example.org/dir", "begins with https://"),
            ("ca.example.org", "begins with https://"),
            ("https:/ca.example.org", "begins with https://"),
            ("https://", "host"),
            ("https:///dir", "host"),
            ("https://a b/", "character"),
            ("https://a.b/\n", "character"),
            ("https://a.b/#c", "character"),
            ("https://u:p@a.b/", "user"),
            ("https://a.b:0/", "port"),
            ("https://a.b:65536/", "port"),
            ("https://a.b:+1/", "port"),
            ("https://a.b:/", "port"),
            ("https://:443/", "host"),
        ] {
            let error = directory(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
