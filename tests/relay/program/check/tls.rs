//! What `pyrycode-relay check` says about TLS.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::{Running, checked, program};
use crate::rig::Plain;

/// A certificate for `relay.test` and its key.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
        let key = directory.path().join("key");
        std::fs::write(directory.path().join("cert"), made.cert.pem()).unwrap();
        std::fs::write(&key, made.key_pair.serialize_pem()).unwrap();
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self(directory)
    }

    fn options(&self) -> [String; 4] {
        let path = |name| self.0.path().join(name).to_str().unwrap().to_owned();
        ["--tls-cert".to_owned(), path("cert"), "--tls-key".to_owned(), path("key")]
    }
}

#[test]
fn a_certificate_is_looked_at_and_a_domain_that_it_is_not_for_is_wrong() {
    let files = Files::new();
    let with_domain = |domain| {
        let mut command = program(&["check", "--tls-listen", "127.0.0.1:0", "--domain", domain]);
        command.args(files.options());
        checked(command)
    };
    let (code, report) = with_domain("relay.test");
    assert_eq!(code, 0, "{report}");
    assert!(report.lines().any(|line| line.starts_with("TLS ") && line.ends_with(" free")));
    assert!(report.contains("days left") && report.contains("in the certificate"), "{report}");
    assert!(!report.contains("\nlisten ") && !report.contains("BEGIN"), "{report}");
    let (code, report) = with_domain("else.test");
    assert_eq!(code, 1, "{report}");
    assert!(report.contains("wrong  the certificate is not for else.test"), "{report}");
}

#[test]
fn a_cache_directory_is_neither_made_nor_changed_and_no_directory_is_asked() {
    let files = Files::new();
    let cache = files.0.path().join("cache");
    let directory = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/directory", directory.local_addr().unwrap());
    let check = || {
        let mut command = program(&["check", "--tls-listen", "127.0.0.1:0", "--domain", "a.test"]);
        command.args(["--acme-directory", &url, "--cert-cache"]).arg(&cache);
        checked(command)
    };
    let (code, report) = check();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("will be made") && !cache.exists(), "{report}");
    std::fs::create_dir(&cache).unwrap();
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, report) = check();
    assert_eq!(code, 1, "{report}");
    assert!(report.contains("its mode is 0755"), "{report}");
    assert_eq!(std::fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
    directory.set_nonblocking(true).unwrap();
    assert!(directory.accept().is_err(), "the directory was asked");
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the process has the emulator's name")]
fn a_running_relay_that_speaks_tls_is_known_by_its_name() {
    let files = Files::new();
    let options = files.options();
    let mut all = vec!["--tls-listen", "127.0.0.1:0"];
    all.extend(options.iter().map(String::as_str));
    let other = Running::plain(Plain::ItsOwnTls, &all);
    let address = other.wait_nth("listening", 2).field("address").to_owned();
    let mut command = program(&["check", "--tls-listen", &address]);
    command.args(&options);
    let (code, report) = checked(command);
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("in use by a running relay"), "{report}");
}
