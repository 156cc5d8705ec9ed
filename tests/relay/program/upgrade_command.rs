//! `pyrycode-relay upgrade`: has a running relay change to the program file in its place.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use pyrycode_relay::limits::UPGRADE_NOTICED;
use tempfile::TempDir;

use super::upgrade::cannot_run;
use super::*;
use crate::rig::scaled;

/// Runs the subcommand; returns its exit code and what it wrote to standard output and standard error.
fn upgrade(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(program(&[&["upgrade"], arguments].concat()));
    (output.status.code(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
}

fn upgrade_process(pid: u32) -> (Option<i32>, String, String) {
    upgrade(&["--pid", &pid.to_string()])
}

/// A relay whose program file can be replaced.
fn replaceable() -> (TempDir, PathBuf, Running) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pyrycode-relay");
    install(&file, "cat <\"$1\"");
    let mut command = Command::new(&file);
    command.args(unlimited()).env_clear();
    let running = Running::spawn(command);
    (directory, file, running)
}

#[test]
fn it_says_that_the_relay_was_upgraded_as_often_as_it_was() {
    let relay = Running::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair("by-command");
    let pid = relay.child.id();
    for count in 1..=3 {
        let (code, out, err) = upgrade_process(pid);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert_eq!(out, format!("the relay (PID {pid}) was upgraded\n"));
        relay.wait_nth("upgraded", count);
        exchange(&mut binary, &mut phone, &conn_id);
    }
    assert_eq!(relay.lines("upgrade_begun").len(), 3);
}

/// To the kernel the name of an emulated program is the emulator's.
#[test]
fn several_relays_are_named_and_none_is_signalled() {
    let relays = [Running::start(&[]), Running::start(&[])];
    for relay in &relays {
        relay.address();
    }
    let (code, out, err) = upgrade(&[]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("several relays are running") && err.contains("--pid PID"), "{err}");
    for relay in &relays {
        let pids: Vec<_> = err.split(|sign: char| !sign.is_ascii_digit()).collect();
        assert!(pids.contains(&relay.child.id().to_string().as_str()), "{err}");
    }
    for relay in relays {
        let log = relay.stop();
        assert!(!log.iter().any(|line| Line::parse(line).is("upgrade_begun")), "{log:#?}");
    }
}

#[test]
fn a_process_that_is_not_there_is_told() {
    let mut ended = Command::new("/bin/true").spawn().unwrap();
    // Until it is waited for it has ended, and is there.
    let until = Instant::now() + deadline();
    while !std::fs::read_to_string(format!("/proc/{}/stat", ended.id())).unwrap().contains(") Z ") {
        assert!(Instant::now() < until, "it ends");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_told(&upgrade_process(ended.id()), "there is no process");
    ended.wait().unwrap();
    assert_told(&upgrade_process(ended.id()), "there is no process");
}

#[test]
fn a_process_that_the_signal_would_end_is_left_alone() {
    let mut other = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    assert_told(&upgrade_process(other.id()), "restart it instead");
    assert_eq!(other.try_wait().unwrap(), None, "it still runs");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// It dies of the signal all the same.
#[test]
fn a_shell_that_tidies_up_before_the_signal_ends_it_is_left_alone() {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "trap 'exit 1' USR2; echo; while :; do sleep 1000; done"])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut ready = [0];
    shell.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    assert_told(&upgrade_process(shell.id()), "is no relay");
    assert_eq!(shell.try_wait().unwrap(), None, "it still runs");
    // With what it has started.
    let group = rustix::process::Pid::from_child(&shell);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    shell.wait().unwrap();
}

#[test]
fn a_relay_whose_new_program_is_rubbish_goes_on_and_that_is_told() {
    let (_directory, file, relay) = replaceable();
    let (mut binary, mut phone, conn_id) = relay.pair("rubbish");
    install(&file, "echo rubbish");
    let begun = Instant::now();
    let told = upgrade_process(relay.child.id());
    assert_told(&told, "goes on with the old program");
    assert_told(&told, "upgrade_failed");
    assert!(begun.elapsed() < UPGRADE_NOTICED + scaled(Duration::from_secs(3)));
    assert!(relay.wait("upgrade_failed").field("reason").contains(cannot_run("not a program")));
    exchange(&mut binary, &mut phone, &conn_id);
    install(&file, "cat <\"$1\"");
    assert_eq!(upgrade_process(relay.child.id()).0, Some(0), "once it is mended");
    exchange(&mut binary, &mut phone, &conn_id);
}

#[test]
fn a_relay_that_ends_meanwhile_is_told() {
    let (_directory, file, relay) = replaceable();
    relay.address();
    // Its trial takes as long as it may.
    install(&file, "echo '#!/bin/sh'; echo exec sleep 1000");
    let pid = relay.child.id();
    let asking = std::thread::spawn(move || upgrade_process(pid));
    relay.wait("upgrade_begun");
    relay.signal("TERM");
    relay.wait_for_end();
    assert_told(&asking.join().unwrap(), "has ended");
}

#[test]
fn only_its_own_user_and_root_may_upgrade_a_relay() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        // Nobody else can be signalled or, as here, become somebody else.
        return;
    }
    let relay = Running::start(&[]);
    relay.address();
    let (_directory, file, other) = replaceable();
    other.address();
    let directory = file.parent().unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(&file);
    command.args(["upgrade", "--pid", &relay.child.id().to_string()]).env_clear();
    command.uid(65534);
    let output = run(command);
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(err.contains("run this as the relay's user, or as root"), "{err}");
    assert!(relay.lines("upgrade_begun").is_empty());
}

#[test]
fn a_pid_that_cannot_be_one_is_a_bad_option() {
    for wrong in ["0", "-1", "relay", "99999999999"] {
        let (code, _, err) = upgrade(&[&format!("--pid={wrong}")]);
        assert_eq!(code, Some(2), "{wrong}");
        assert!(err.contains("--pid"), "{err}");
    }
}

/// It failed, with this in its message.
fn assert_told((code, out, err): &(Option<i32>, String, String), message: &str) {
    assert_eq!((*code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
    assert!(err.contains(message), "{err}");
}
