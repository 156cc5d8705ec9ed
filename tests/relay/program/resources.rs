//! Descriptors and standard streams: what the program does without them.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{Line, Running, exchange, program, program_in_shell, run, text};
use crate::rig::ws::{self, Ws};
use crate::rig::{binary_head, connect, deadline, front, millis, phone_head, scaled};

#[test]
fn out_of_descriptors_it_does_not_spin_and_goes_on_when_there_are_some_again() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 40 && exec "$0" "$@""#,
        &[
            front(),
            &["--rate-limit", "off", "--header-timeout", "100s"],
            &["--heartbeat-interval", &millis(1500)],
        ]
        .concat(),
    ));
    let (mut binary, mut phone, conn_id) = relay.pair("held");
    // The kernel takes them all; the program has no descriptor for the last of them.
    let crowd: Vec<_> = (0..60).map(|_| connect(relay.address().at)).collect();
    relay.wait("accept_failed");
    exchange(&mut binary, &mut phone, &conn_id);

    let before = relay.processor_time();
    // What passes is the silence after which the relay pings.
    let started = Instant::now();
    assert_eq!(phone.read_frame().opcode, ws::PING);
    assert!(started.elapsed() > scaled(Duration::from_secs(1)));
    let used = relay.processor_time() - before;
    assert!(used < Duration::from_millis(200), "{used:?} of work while there was nothing to do");
    exchange(&mut binary, &mut phone, &conn_id);
    assert_eq!(relay.lines("accept_failed").len(), 1, "one line a streak");

    drop(crowd);
    let (mut new_binary, mut new_phone, new_id) = relay.pair("new");
    exchange(&mut new_binary, &mut new_phone, &new_id);
    exchange(&mut binary, &mut phone, &conn_id);
    let again = relay.wait("accepting_again");
    assert!(again.field("failures").parse::<u32>().unwrap() >= 1);
}

#[test]
fn out_of_descriptors_it_still_stops_in_time() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 40 && exec "$0" "$@""#,
        &[front(), &["--rate-limit", "off", "--header-timeout", "100s"]].concat(),
    ));
    let (mut binary, phone, _) = relay.pair("held");
    let _crowd: Vec<_> = (0..60).map(|_| connect(relay.address().at)).collect();
    relay.wait("accept_failed");
    relay.signal("TERM");
    binary.expect_close(1001, "shutting down");
    drop((binary, phone));
    assert_eq!(relay.wait_for_end().0, Some(0));
}

#[test]
fn one_warning_tells_that_the_descriptors_do_not_fit_the_connections() {
    let limited = |most: &str| {
        Running::spawn(program_in_shell(
            r#"ulimit -n 50 && exec "$0" "$@""#,
            &[front(), &["--max-connections", most]].concat(),
        ))
    };
    let event = "the descriptor limit does not fit --max-connections: raise it (LimitNOFILE=) or lower that";
    let relay = limited("100");
    let warning = relay.wait(event);
    assert_eq!(warning.field("level"), "warn");
    assert_eq!((warning.field("descriptors"), warning.field("max_connections")), ("50", "100"));
    relay.wait("listening");
    assert_eq!(relay.lines(event).len(), 1);

    let relay = limited("10");
    relay.wait("listening");
    assert_eq!(relay.lines(event).len(), 0);
}

#[test]
fn the_soft_descriptor_limit_is_raised_to_the_hard_one() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 300 && ulimit -Sn 64 && exec "$0" "$@""#,
        &[front(), &["--max-connections", "200"]].concat(),
    ));
    relay.wait("listening");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["300", "300"]);
    assert_eq!(relay.lines("listening").len(), 1);
    assert!(!relay.stop().join("\n").contains("level=warn"));
}

#[test]
fn the_table_of_descriptors_never_grows_while_the_relay_serves() {
    for (connections, limit) in [("1000", "4000"), ("1000", "600")] {
        let script = format!(r#"ulimit -n {limit} && exec "$0" "$@""#);
        let options = [front(), &["--max-connections", connections]].concat();
        let relay = Running::spawn(program_in_shell(&script, &options));
        relay.wait("listening");
        let status = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let size: u32 = size.trim().parse().unwrap();
        let most = limit.parse().unwrap_or(u32::MAX).min(1000);
        assert!((most..=4 * most).contains(&size), "{size} of {most}");
    }
}

#[test]
fn closed_standard_streams_do_not_matter() {
    // Nobody can read the port from a closed log, so this one is chosen: an address of its own.
    let probe = TcpListener::bind("127.83.1.7:0").unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    for closed in ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"] {
        let listen = address.to_string();
        let line = format!(r#"exec "$0" "$@" {closed}"#);
        let relay = Running::spawn(program_in_shell(&line, &["--listen", &listen]));
        wait_until_listening(address);
        let mut binary = Ws::upgrade(address, &binary_head("streams"));
        let mut phone = Ws::upgrade(address, &phone_head("streams"));
        phone.send_text("1");
        assert!(binary.read_text().ends_with(r#","frame":1}"#), "{closed}");
        relay.signal("TERM");
        binary.expect_close(1001, "shutting down");
        drop((binary, phone));
        let mut relay = relay;
        assert_eq!(relay.child.wait().unwrap().code(), Some(0), "{closed}");
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_does_not_matter() {
    let mut command = program(&[front(), &["--log-level", "trace"]].concat());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut relay = Running { child, log: Arc::default(), log_ended: channel().1 };
    let mut log = BufReader::new(relay.child.stderr.take().unwrap()).lines();
    let mut lines = log.by_ref().map(|line| Line::parse(&line.unwrap()));
    let listening = lines.find(|line| line.is("listening")).unwrap();
    drop(log);
    let address = listening.address();
    let mut binary = Ws::upgrade(address, &binary_head("unread"));
    let mut phone = Ws::upgrade(address, &phone_head("unread"));
    phone.send_text("1");
    assert!(binary.read_text().ends_with(r#","frame":1}"#));
    relay.signal("TERM");
    binary.expect_close(1001, "shutting down");
    drop((binary, phone));
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
}

/// Connects until somebody listens.
fn wait_until_listening(address: SocketAddr) {
    let until = Instant::now() + deadline();
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "nobody listens on {address}");
        std::thread::yield_now();
    }
}

/// The sentence that a program which could not start has logged last.
fn reason(output: &Output) -> String {
    let stderr = text(&output.stderr);
    let failed = Line::parse(stderr.lines().last().unwrap_or_default());
    assert_eq!((failed.field("level"), failed.field("event")), ("error", "failed"), "{stderr}");
    failed.field("reason").to_owned()
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator needs descriptors of its own")]
fn without_descriptors_for_the_event_loop_it_says_so_and_exits_with_1() {
    for most in 5..=10 {
        let line = format!(r#"ulimit -n {most} && exec "$0" "$@""#);
        let output = run(program_in_shell(&line, &["--listen", "127.0.0.1:0"]));
        assert_eq!(output.status.code(), Some(1), "{most}: {}", text(&output.stderr));
        let reason = reason(&output);
        assert!(reason.contains("LimitNOFILE="), "{most}: {reason}");
    }
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator does not fit into the address space")]
fn without_a_helper_thread_it_says_so_and_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Which limit leaves room for the program and not for a thread depends on the machine. So the
    // limit is raised until the program gets as far as to the address, which is in use.
    let mut reasons = Vec::new();
    for kilobytes in (8_000..200_000).step_by(500) {
        let line = format!(r#"ulimit -v {kilobytes} && exec "$0" "$@""#);
        let output = run(program_in_shell(&line, &["--listen", &address]));
        match output.status.code() {
            // It could not be loaded, or the allocator ended it.
            None | Some(126 | 127) => continue,
            code => assert_eq!(code, Some(1), "{kilobytes}: {}", text(&output.stderr)),
        }
        let reason = reason(&output);
        if reason.contains("in use") {
            break;
        }
        reasons.push(reason);
    }
    assert!(!reasons.is_empty(), "some limit is too small for a thread");
    assert!(reasons.iter().all(|reason| reason.contains("LimitNPROC=")), "{reasons:#?}");
}
