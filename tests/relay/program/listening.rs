//! Where the program listens.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use super::{Line, Running, answers, program, program_in_shell, run, run_with_input, text};
use crate::rig::ws::Ws;
use crate::rig::{Plain, binary_head};

#[test]
fn an_address_in_use_ends_the_program_with_1_and_names_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(program(&["--listen", "127.0.0.1:0", "--listen", &address]));
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let failed = Line::parse(stderr.lines().last().unwrap());
    assert_eq!((failed.field("level"), failed.field("event")), ("error", "failed"));
    assert!(failed.field("reason").contains(&address), "{stderr}");
    assert!(failed.field("reason").contains("in use"), "{stderr}");
}

#[test]
fn it_runs_without_any_environment_and_the_log_tells_the_port() {
    let relay = Running::plain(Plain::ItsOwnListeners, &[]);
    let listening = relay.wait("listening");
    let address: SocketAddr = listening.field("address").parse().unwrap();
    assert_eq!(listening.keys(), ["time", "level", "event", "address"]);
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    assert!(answers(address));
}

#[test]
fn several_addresses_are_listened_on_by_either_name_of_the_option() {
    let relay = Running::spawn(program(&[
        "--listen",
        "127.0.0.1:0",
        "--insecure-listen",
        "127.0.0.2:0,127.0.0.3:0",
    ]));
    for (count, ip) in [(1, "127.0.0.1"), (2, "127.0.0.2"), (3, "127.0.0.3")] {
        let line = relay.wait_nth("listening", count);
        let address: SocketAddr = line.field("address").parse().unwrap();
        assert_eq!(address.ip().to_string(), ip);
        assert!(answers(address));
    }
}

#[test]
fn a_port_alone_means_every_interface_and_both_families() {
    let relay = Running::spawn(program(&["--insecure-listen", ":0"]));
    let address = relay.address().at;
    assert!(address.ip().is_unspecified());
    let reachable = |ip: &str| TcpStream::connect((ip, address.port())).is_ok();
    if TcpListener::bind("[::]:0").is_ok() {
        assert!(address.is_ipv6());
    } else {
        let note = relay.wait("listening on IPv4 alone: this kernel has no IPv6");
        assert_eq!(note.field("level"), "info");
        assert!(address.is_ipv4());
    }
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(
            reachable("::1") && answers(SocketAddr::new("::1".parse().unwrap(), address.port()))
        );
    }
    assert!(reachable("127.0.0.1"));
    assert!(answers(SocketAddr::new("127.0.0.1".parse().unwrap(), address.port())));
    // A mapped address is IPv4 in the log.
    drop(Ws::upgrade(
        SocketAddr::new("127.0.0.1".parse().unwrap(), address.port()),
        &binary_head("families"),
    ));
    assert_eq!(relay.wait("server_claimed").field("remote"), "127.0.0.1");
}

#[test]
fn an_address_that_is_not_there_yet_is_bound_all_the_same() {
    let relay = Running::spawn(program(&["--listen", "192.0.2.1:0"]));
    let address = relay.address().at;
    assert_eq!(address.ip().to_string(), "192.0.2.1");
    assert_ne!(address.port(), 0);
    relay.stop();
}

#[test]
fn the_environment_sets_options_and_the_command_line_wins() {
    let mut command = program(&["--log-level", "info"]);
    command.env("PYRYCODE_RELAY_LISTEN", "127.0.0.2:0").env("PYRYCODE_RELAY_LOG_LEVEL", "error");
    let relay = Running::spawn(command);
    assert_eq!(relay.address().at.ip().to_string(), "127.0.0.2");
    drop(relay);

    let mut command = program(&["--listen", "127.0.0.3:0"]);
    command.env("PYRYCODE_RELAY_LISTEN", "127.0.0.2:0").env("PYRYCODE_RELAY_MAX_PHONES", "1");
    let relay = Running::spawn(command);
    assert_eq!(relay.address().at.ip().to_string(), "127.0.0.3");
    let (_binary, _phone, _) = relay.pair("one-phone");
    relay.phone("one-phone").expect_close(4429, "too many phones");
    assert_eq!(relay.lines("listening").len(), 1, "one replaces the other");
}

/// What the program logs that cannot start; socket 3 is a listening one, and the line of shell sets
/// the variables about it.
fn handed_a_socket(variables: &str, arguments: &[&str]) -> Vec<String> {
    let line = format!(r#"{variables} exec "$0" "$@" 3<&0 </dev/null"#);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let input = Stdio::from(OwnedFd::from(socket));
    let output = run_with_input(program_in_shell(&line, arguments), input);
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{variables}: {log}");
    log.lines().map(str::to_owned).collect()
}

#[test]
fn sockets_of_systemd_are_taken_only_by_the_process_that_they_are_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (variables, is_said) in [
        ("LISTEN_FDS=1", true),
        ("LISTEN_FDS=1 LISTEN_PID=", true),
        ("LISTEN_FDS=1 LISTEN_PID=1", false),
        ("LISTEN_FDS=100000000", true),
    ] {
        // It does not take the socket, so it listens where it is told, which is in use.
        let log = handed_a_socket(variables, &["--listen", &address]);
        let lines: Vec<_> = log.iter().map(|line| Line::parse(line)).collect();
        let reason = lines.last().unwrap().field("reason");
        assert!(reason.contains("in use"), "{variables}: {log:#?}");
        let ignored = lines.iter().filter(|line| line.is("inherited_sockets_ignored"));
        assert_eq!(ignored.count(), usize::from(is_said), "{variables}: {log:#?}");
    }
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator does not fit into the address space")]
fn a_number_of_sockets_that_systemd_never_hands_over_is_refused_without_making_room_for_it() {
    for variables in [
        "LISTEN_PID=$$ LISTEN_FDS=100000000",
        "LISTEN_PID=$$ LISTEN_FDS=-1",
        "LISTEN_PID=$$ LISTEN_FDS=many",
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDS_FIRST_FD=0",
    ] {
        // A hundred million numbers would not fit.
        let variables = format!("ulimit -v 400000; {variables}");
        let log = handed_a_socket(&variables, &["--listen", "127.0.0.1:0"]);
        let failed = Line::parse(log.last().unwrap());
        assert!(failed.is("failed") && failed.field("reason").contains("LISTEN_FDS"), "{log:#?}");
    }
}
