use std::fs::Permissions;

use tempfile::TempDir;

use super::*;
use crate::cli::board::Board;
use crate::cli::check::address::Occupancy;
use crate::config::Options;

/// A directory for a pair of files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With a certificate for two names, valid in these years.
    fn with_pair(from: i32, until: i32) -> Self {
        let place = Self::new();
        let names = vec!["relay.test".to_owned(), "*.phones.test".to_owned()];
        let mut wanted = rcgen::CertificateParams::new(names).unwrap();
        wanted.not_before = rcgen::date_time_ymd(from, 1, 1);
        wanted.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        place.write("cert", &wanted.self_signed(&key).unwrap().pem(), 0o644);
        place.write("key", &key.serialize_pem(), 0o600);
        place
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// What is said about the files, with more options.
    fn report(&self, more: &[&str]) -> Report {
        let (cert, key) = (self.path("cert"), self.path("key"));
        let files = ["--tls-listen", ":8443", "--tls-cert", &cert, "--tls-key", &key];
        report(&[&files[..], more].concat(), &Occupancy::Free)
    }
}

fn report(arguments: &[&str], found: &Occupancy) -> Report {
    let all = std::iter::once("pyrycode-relay").chain(arguments.iter().copied());
    let options = Options::parse_arguments(all).unwrap();
    let sources = options.sources.clone();
    let config = Config::from_options(options).unwrap();
    let board = Board { memory: None, memory_limit: None, descriptors: None };
    Report::new(&config, &sources, board, |_| found.clone())
}

fn acme(cache: &str, more: &[&str]) -> Report {
    let some = ["--tls-listen", ":8443", "--domain", "relay.test", "--cert-cache", cache];
    report(&[&some[..], more].concat(), &Occupancy::Free)
}

fn has_note(report: &Report, text: &str) -> bool {
    report.notes.iter().any(|note| note.contains(text))
}

fn row<'a>(report: &'a Report, label: &str) -> (&'a str, &'a str) {
    let found = report.rows.iter().find(|row| row.0 == label);
    found.map(|(_, value, remark)| (value.as_str(), remark.as_str())).unwrap_or_default()
}

#[test]
fn a_good_certificate_is_shown_with_its_names_and_days() {
    let place = Place::with_pair(2020, 2999);
    let report = place.report(&["--domain", "relay.test,a.phones.test"]);
    assert!(report.is_fine(), "{report:?}");
    let (path, remark) = row(&report, "certificate");
    assert_eq!(path, place.path("cert"));
    let days: u64 = remark.strip_suffix(" days left").unwrap().parse().unwrap();
    assert!(days > 300_000, "{days}");
    assert_eq!(row(&report, "names").0, "relay.test");
    assert_eq!(row(&report, "domains").0, "relay.test");
    let text = report.text(false);
    assert!(text.contains("*.phones.test") && text.contains("TLS "), "{text}");
    assert!(!text.contains("\nlisten"), "{text}");
}

#[test]
fn files_that_cannot_be_used_are_wrong() {
    type Spoil = fn(&Place);
    let spoiled: [(Spoil, &str); 4] = [
        (|place| fs::remove_file(place.path("cert")).unwrap(), "cannot read"),
        (|place| place.write("cert", "nothing", 0o644), "no PEM certificate"),
        (
            |place| {
                let other = rcgen::KeyPair::generate().unwrap();
                place.write("key", &other.serialize_pem(), 0o600);
            },
            "not the certificate's",
        ),
        (
            |place| {
                let open = Permissions::from_mode(0o644);
                fs::set_permissions(place.path("key"), open).unwrap();
            },
            "chmod o=",
        ),
    ];
    for (spoil, said) in spoiled {
        let place = Place::with_pair(2020, 2999);
        spoil(&place);
        let report = place.report(&[]);
        assert_eq!(report.wrong.len(), 1, "{report:?}");
        assert!(report.wrong[0].contains(said), "{report:?}");
    }
    let report = Place::with_pair(2019, 2020).report(&[]);
    assert!(report.wrong[0].contains("expired at 2020-01-01"), "{report:?}");
}

#[test]
fn a_domain_that_the_certificate_is_not_for_is_wrong() {
    let place = Place::with_pair(2020, 2999);
    let report = place.report(&["--domain", "relay.test,else.test,a.b.phones.test"]);
    assert_eq!(report.wrong.len(), 2, "{report:?}");
    assert!(report.wrong[0].contains("not for else.test"), "{report:?}");
    assert!(report.wrong[1].contains("not for a.b.phones.test"), "{report:?}");
}

#[test]
fn a_certificate_of_the_future_is_noted() {
    let report = Place::with_pair(2998, 2999).report(&[]);
    assert!(report.is_fine() && has_note(&report, "not valid before 2998-01-01"), "{report:?}");
    assert!(!has_note(&Place::with_pair(2020, 2999).report(&[]), "not valid before"));
}

#[test]
fn tls_is_no_reason_to_recommend_tls_and_plain_beside_it_is_noted() {
    let place = Place::with_pair(2020, 2999);
    let alone = place.report(&[]);
    assert!(!has_note(&alone, "without TLS") && has_note(&alone, "--allow-server"), "{alone:?}");
    let beside = place.report(&["--listen", ":8080"]);
    assert!(beside.is_fine() && has_note(&beside, "without TLS too"), "{beside:?}");
    assert!(!has_note(&place.report(&["--listen", "127.0.0.1:8080"]), "without TLS"));
    let unlimited = place.report(&["--rate-limit", "off"]);
    assert!(unlimited.wrong[0].contains("--rate-limit"), "{unlimited:?}");
}

#[test]
fn addresses_for_tls_are_looked_at_like_others() {
    let place = Place::with_pair(2020, 2999);
    let (cert, key) = (place.path("cert"), place.path("key"));
    let at = |address: &str, more: &[&str], found: &Occupancy| {
        let files = ["--tls-listen", address, "--tls-cert", &cert, "--tls-key", &key];
        report(&[&files[..], more].concat(), found)
    };
    let free = at(":443", &[], &Occupancy::Free);
    assert!(free.is_fine() && has_note(&free, "pyrycode-relay-tls.socket"), "{free:?}");
    let refused = at(":443", &[], &Occupancy::Refused("Permission denied".to_owned()));
    assert!(refused.wrong[0].contains(":443 cannot be listened on: Permission denied (let "));
    let taken = at(":8443", &[], &Occupancy::Taken(Some("nginx, process 7".to_owned())));
    assert!(taken.wrong[0].contains("nginx, process 7"), "{taken:?}");
    let overlap = at(":8443", &["--listen", "127.0.0.1:8443"], &Occupancy::Free);
    assert_eq!(overlap.wrong.len(), 1, "{overlap:?}");
    assert!(overlap.wrong[0].contains("TLS needs a port of its own"), "{overlap:?}");
}

#[test]
fn without_an_address_the_socket_of_systemd_is_meant() {
    let place = Place::with_pair(2020, 2999);
    let (cert, key) = (place.path("cert"), place.path("key"));
    let report = report(&["--tls-cert", &cert, "--tls-key", &key], &Occupancy::Free);
    assert!(report.is_fine(), "{report:?}");
    assert_eq!(row(&report, "TLS"), ("no address", "a socket of systemd's"));
    assert!(has_note(&report, "pyrycode-relay-tls.socket"), "{report:?}");
    assert!(has_note(&report, "--allow-server") && !has_note(&report, "without TLS"), "{report:?}");
}

#[test]
fn a_cache_directory_is_there_for_its_owner_alone_or_can_be_made() {
    let place = Place::new();
    let cache = place.path("cache");
    let missing = acme(&cache, &[]);
    assert!(missing.is_fine(), "{missing:?}");
    assert_eq!(row(&missing, "cache"), (cache.as_str(), "will be made"));
    assert!(!Path::new(&cache).exists(), "nothing is written");
    assert_eq!(row(&missing, "ACME").1, "not asked");

    fs::create_dir(&cache).unwrap();
    for (mode, is_fine) in [(0o700, true), (0o750, false), (0o701, false), (0o500, false)] {
        fs::set_permissions(&cache, Permissions::from_mode(mode)).unwrap();
        let report = acme(&cache, &[]);
        assert_eq!(report.is_fine(), is_fine, "{mode:o}: {report:?}");
        assert_eq!(row(&report, "cache").1, format!("mode {mode:04o}"));
    }
    let deep = acme(&place.path("no/cache"), &[]);
    assert!(deep.wrong[0].contains("cannot be used: No such file"), "{deep:?}");
    place.write("file", "", 0o700);
    assert!(acme(&place.path("file"), &[]).wrong[0].contains("no directory"));
}

#[test]
fn acme_shows_its_domains_and_its_directory() {
    let place = Place::new();
    let report = acme(&place.path("cache"), &["--acme-directory", "https://ca.test/acme"]);
    assert_eq!(row(&report, "ACME").0, "https://ca.test/acme");
    assert_eq!(row(&report, "domains"), ("relay.test", "served over TLS"));
    assert_eq!(row(&report, "certificate"), ("", ""));
}

#[test]
fn a_key_for_root_alone_is_noted() {
    let place = Place::with_pair(2020, 2999);
    let is_root = fs::metadata(place.path("key")).unwrap().uid() == 0;
    assert_eq!(has_note(&place.report(&[]), "certificate.conf"), is_root);
}
