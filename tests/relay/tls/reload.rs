//! Certificates that change while the relay runs, and those with which it does not start.

use std::process::{Command, Stdio};

use pyrycode_relay::limits::CERTIFICATE_CHECK;

use super::client::{Files, NAME, pair, set_mode};
use crate::rig::{Relay, Ws, binary_head, events, fresh_id, phone_head};
use std::io::Write as _;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pyrycode-relay");

fn shown(files: &Files, relay: &Relay) -> Vec<u8> {
    files.client().meet(relay.tls.unwrap(), NAME).unwrap().certificate
}

fn pair_of(files: &Files, relay: &Relay, id: &str) -> (Ws, Ws) {
    let upgraded = |head: String| {
        let mut stream = files.client().dial(relay.tls.unwrap());
        stream.write_all(head.as_bytes()).unwrap();
        Ws::after_request(stream)
    };
    (upgraded(binary_head(id)), upgraded(phone_head(id)))
}

#[test]
fn a_reload_shows_the_new_certificate_and_touches_no_connection() {
    let mut files = Files::new();
    let relay = files.relay(&[]);
    let id = fresh_id("reload");
    let (mut binary, mut phone) = pair_of(&files, &relay, &id);
    let before = files.certificate.clone();
    assert_eq!(shown(&files, &relay), before);
    for round in 0..5 {
        phone.send_text(&format!("{round}"));
        files.renew();
        let seen = events::mark();
        relay.reload();
        files.wait_for(seen, "certificate_read");
        assert_eq!(shown(&files, &relay), files.certificate);
        assert!(binary.read_text().ends_with(&format!(r#""frame":{round}}}"#)));
    }
    binary.sync();
    phone.sync();
}

#[test]
fn a_certificate_that_changes_on_disk_is_shown_without_being_asked_for() {
    let mut files = Files::new();
    let relay = files.relay_by(Relay::plain_with_a_clock_that_stands_still, &[]);
    let id = fresh_id("changed");
    let (mut binary, _phone) = pair_of(&files, &relay, &id);
    let seen = events::mark();
    files.renew();
    relay.let_pass(CERTIFICATE_CHECK);
    files.wait_for(seen, "certificate_read");
    assert_eq!(shown(&files, &relay), files.certificate);
    binary.sync();
}

/// What a message asks for, and what an owner may do besides.
#[test]
fn whatever_keeps_a_new_pair_from_being_used_is_noticed_when_it_is_mended() {
    type Step = fn(&Files);
    let cases: [(&str, Step, Step); 3] = [
        (
            "run chmod o=",
            |files| set_mode(&files.key_path(), 0o604),
            |files| set_mode(&files.key_path(), 0o600),
        ),
        (
            "it is no regular file",
            |files| {
                std::fs::rename(files.key_path(), files.key_path().with_extension("away")).unwrap();
                std::os::unix::fs::symlink("/", files.key_path()).unwrap();
            },
            // At once: the relay may look at any moment.
            |files| {
                std::fs::rename(files.key_path().with_extension("away"), files.key_path()).unwrap();
            },
        ),
        (
            "No such file",
            |files| {
                let place = files.key_path().parent().unwrap().to_owned();
                std::fs::rename(&place, place.with_extension("away")).unwrap();
            },
            |files| {
                let place = files.key_path().parent().unwrap().to_owned();
                std::fs::rename(place.with_extension("away"), &place).unwrap();
            },
        ),
    ];
    for (reason, spoil, mend) in cases {
        let mut files = Files::new();
        let relay = files.relay_by(Relay::plain_with_a_clock_that_stands_still, &[]);
        assert_eq!(shown(&files, &relay), files.certificate, "it is up");
        files.renew();
        let seen = events::mark();
        spoil(&files);
        relay.let_pass(CERTIFICATE_CHECK);
        let kept = files.wait_for(seen, "certificate_kept");
        assert!(events::field(&kept, "reason").contains(reason), "{kept:?}");
        for _ in 0..5 {
            relay.let_pass(CERTIFICATE_CHECK);
        }
        let seen = events::mark();
        mend(&files);
        relay.let_pass(CERTIFICATE_CHECK);
        files.wait_for(seen, "certificate_read");
        assert_eq!(shown(&files, &relay), files.certificate, "{reason}");
        let path = files.certificate_path();
        let told = events::count("certificate_kept", &[("file", path.to_str().unwrap())]);
        assert_eq!(told, 1, "{reason}");
    }
}

#[test]
fn a_pair_that_cannot_be_used_leaves_the_one_before() {
    let files = Files::new();
    let relay = files.relay(&[]);
    let good = std::fs::read_to_string(files.certificate_path()).unwrap();
    let key = std::fs::read_to_string(files.key_path()).unwrap();
    let (other, other_key) = pair(|_| {});
    let past =
        |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (expired, expired_key) = pair(past);
    for (certificate, key, reason) in [
        (good.as_str(), other_key.as_str(), "the key is not the certificate's"),
        (&other.1, &key, "the key is not the certificate's"),
        ("", &key, "there is no PEM certificate in it"),
        (&good, "garbage", "there is no PEM private key in it that can be used"),
        (&expired.1, &expired_key, "the certificate expired at 2020-01-01T00:00:00Z"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &key,
            "its first certificate cannot be read",
        ),
    ] {
        files.write(certificate, key);
        let seen = events::mark();
        relay.reload();
        let kept = files.wait_for(seen, "certificate_kept");
        let told = events::field(&kept, "reason");
        assert!(told.ends_with(reason), "{told}");
        assert_eq!(shown(&files, &relay), files.certificate);
    }
}

#[test]
fn the_relay_does_not_start_with_a_pair_that_cannot_be_used_and_says_why() {
    let attempt = |files: &Files| {
        let output = Command::new(PROGRAM)
            .env_clear()
            .args(files.options())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let files = Files::new();
    set_mode(&files.key_path(), 0o644);
    let (code, said) = attempt(&files);
    assert_eq!(code, Some(1), "{said}");
    let told =
        format!("every user of this machine may use the key {0}", files.key_path().display());
    assert!(said.contains(&told), "{said}");
    assert!(!said.contains("BEGIN"), "{said}");

    std::fs::remove_file(files.key_path()).unwrap();
    let (code, said) = attempt(&files);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot read ") && said.contains("No such file"), "{said}");

    let files = Files::new();
    let past =
        |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (expired, key) = pair(past);
    files.write(&expired.1, &key);
    let (code, said) = attempt(&files);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the certificate expired at 2020-01-01T00:00:00Z"), "{said}");
}

#[test]
fn options_that_do_not_fit_together_are_told() {
    for (arguments, told) in [
        (&["--tls-listen", "127.0.0.1:0"][..], "--tls-listen needs a certificate"),
        (&["--tls-cert", "x"], "--tls-key"),
        (&["--tls-cert", "x", "--tls-key", "y"], "--tls-listen"),
        (&["--tls-cert", "x", "--tls-key", "y", "--cert-cache", "z"], "--cert-cache"),
        (&["--domain", "relay.test", "--tls-listen", "127.0.0.1:0"], "--cert-cache"),
        (&["--cert-cache", "z"], "--domain"),
    ] {
        let mut command = Command::new(PROGRAM);
        let output = command.env_clear().args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}
