//! The session of the README, with the real programs: nothing that was typed may be missing.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{Plain, Relay, events, fresh_id};

/// An example client; it is killed when the test is over.
struct Example(Child);

impl Example {
    fn start(name: &str, relay: &Relay, id: &str) -> Self {
        Self::dial(name, &format!("ws://{}", relay.address.at), id, &[])
    }

    fn dial(name: &str, url: &str, id: &str, environment: &[(&str, &Path)]) -> Self {
        let path = example(name);
        let started = Command::new(&path)
            .args([url, id])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(started.unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo test` builds it, `--test relay` does not", path.display())
        }))
    }

    fn output(&mut self) -> Lines<BufReader<ChildStdout>> {
        BufReader::new(self.0.stdout.take().unwrap()).lines()
    }

    fn messages(&mut self) -> Lines<BufReader<ChildStderr>> {
        BufReader::new(self.0.stderr.take().unwrap()).lines()
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.0.stdin.as_ref().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Examples are built beside the program.
fn example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_pyrycode-relay"));
    program.parent().unwrap().join("examples").join(name)
}

#[test]
fn nothing_that_was_typed_is_missing_when_the_binary_is_stopped_and_started_again() {
    let relay = Relay::plain(Plain::ItsOwnClients, &[]);
    let id = fresh_id("typed");
    let binary = Example::start("binary", &relay, &id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let mut phone = Example::start("phone", &relay, &id);
    let mut answers = phone.output();
    let mut answer = |number: usize| {
        let line = answers.next().expect("the phone goes on").unwrap();
        assert_eq!(line, format!(r#"{{"you said":"line {number}"}}"#));
    };

    for number in 0..5 {
        phone.type_line(&format!("line {number}"));
        answer(number);
    }
    drop(binary);
    events::wait("server_released", &[("server_id", &id)]);
    for number in 5..50 {
        phone.type_line(&format!("line {number}"));
    }
    let mark = events::mark();
    let _binary = Example::start("binary", &relay, &id);
    events::wait_after(mark, "server_claimed", &[("server_id", &id)]);
    for number in 50..60 {
        phone.type_line(&format!("line {number}"));
    }
    for number in 5..60 {
        answer(number);
    }
    // The binary spoke to it just before it broke off: it was told to begin anew, and did, once.
    let fields =
        [("server_id", id.as_str()), ("kept", "0"), ("closed", "1"), ("reason", "unproven")];
    events::wait_after(mark, "server_reclaimed", &fields);
    assert_eq!(events::count("phone_registered", &[("server_id", &id)]), 2);

    // The end of its input is the end of the session, once everything is answered.
    drop(phone.0.stdin.take());
    assert!(phone.0.wait().unwrap().success());
}

#[test]
fn a_phone_never_notices_that_its_binary_was_stopped_in_order_and_started_again() {
    let relay = Relay::plain(Plain::ItsOwnClients, &[]);
    let id = fresh_id("stopped");
    let mut binary = Example::start("binary", &relay, &id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let mut phone = Example::start("phone", &relay, &id);
    let mut answers = phone.output();
    let mut answer = |line: &str| {
        let said = answers.next().expect("the phone goes on").unwrap();
        assert_eq!(said, format!(r#"{{"you said":"{line}"}}"#));
    };
    phone.type_line("before");
    answer("before");
    let process = Pid::from_child(&binary.0);
    kill_process(process, Signal::INT).unwrap();
    assert!(binary.0.wait().unwrap().success());
    events::wait("server_released", &[("server_id", &id)]);
    phone.type_line("meanwhile");
    let _binary = Example::start("binary", &relay, &id);
    answer("meanwhile");
    let fields = [("server_id", id.as_str()), ("kept", "1"), ("closed", "0"), ("reason", "kept")];
    events::wait("server_reclaimed", &fields);
    assert_eq!(events::count("phone_registered", &[("server_id", &id)]), 1);
}

#[cfg(feature = "tls")]
#[test]
fn both_speak_tls_with_a_relay_that_the_machine_trusts_and_with_no_other() {
    use crate::tls::client::{Files, pair};

    let local = || {
        let files = Files::new();
        let name = rcgen::SanType::DnsName("localhost".try_into().unwrap());
        let ((_, certificate), key) = pair(|params| params.subject_alt_names.push(name));
        files.write(&certificate, &key);
        files
    };
    let (files, others) = (local(), local());
    let relay = files.relay(&[]);
    let id = fresh_id("wss");
    let url = format!("wss://localhost:{}", relay.tls.unwrap().port());
    let trusted = files.certificate_path();
    let _binary = Example::dial("binary", &url, &id, &[("SSL_CERT_FILE", &trusted)]);
    events::wait("server_claimed", &[("server_id", &id)]);
    let mut phone = Example::dial("phone", &url, &id, &[("SSL_CERT_FILE", &trusted)]);
    phone.type_line("over TLS");
    let answer = phone.output().next().expect("an answer").unwrap();
    assert_eq!(answer, r#"{"you said":"over TLS"}"#);

    let trusted = others.certificate_path();
    let mut wary = Example::dial("phone", &url, &id, &[("SSL_CERT_FILE", &trusted)]);
    let problem = wary.messages().next().expect("it says why").unwrap();
    assert!(problem.contains("certificate"), "{problem}");
    assert_eq!(events::count("phone_registered", &[("server_id", &id)]), 1);
}

#[test]
fn what_is_no_url_of_a_relay_is_told_and_not_dialled() {
    for (name, arguments) in [
        ("binary", &["--help"][..]),
        ("phone", &["relay.example.org"]),
        ("binary", &["http://127.0.0.1:1", "demo"]),
        ("phone", &["ws://127.0.0.1:1", "demo", "more"]),
    ] {
        let output = Command::new(example(name)).args(arguments).stdin(Stdio::null()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("wss://relay.example.org"), "{told}");
    }
}

#[test]
fn a_second_binary_is_told_that_the_server_id_is_taken() {
    let relay = Relay::plain(Plain::ItsOwnClients, &[]);
    let id = fresh_id("taken");
    let _holder = Example::start("binary", &relay, &id);
    events::wait("server_claimed", &[("server_id", &id)]);
    let mut second = Example::start("binary", &relay, &id);
    let last = second.messages().map_while(Result::ok).last().unwrap();
    assert!(last.contains("claimed by another binary"), "{last}");
    assert!(!second.0.wait().unwrap().success());
}
