//! Metrics and status of the program as a process: its figures, its options, `status`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{PROGRAM, Running, program, program_in_shell, run, text};
use crate::rig::{Plain, binary_head, connect, deadline, fresh_id, front, plain, request};

/// The program with a metrics listener.
fn monitored() -> Running {
    Running::start(&MONITORED)
}

const MONITORED: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

fn metrics_of(relay: &Running) -> SocketAddr {
    relay.wait("serving_metrics").field("address").parse().unwrap()
}

/// A sample of the present page.
fn sample(address: SocketAddr, name: &str) -> f64 {
    let (_, page) = request(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

/// The descriptors of the relay without those of pages that were asked for, once the operating
/// system and the page agree on them.
fn descriptors(relay: &Running, metrics: SocketAddr) -> usize {
    let until = Instant::now() + deadline();
    loop {
        let told = sample(metrics, "process_open_fds");
        let counted = descriptors_but_for_pages(relay, metrics);
        // An earlier page's connection goes in its own time.
        if told == counted as f64 + 1.0 {
            return counted;
        }
        assert!(Instant::now() < until, "{told} are told, {counted} are there");
    }
}

fn descriptors_but_for_pages(relay: &Running, metrics: SocketAddr) -> usize {
    let port = format!(":{:04X}", metrics.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let pages: Vec<_> = sockets
        .filter(|socket| socket[1].ends_with(&port) && socket[3] != LISTENING)
        .map(|socket| format!("socket:[{}]", socket[9]))
        .collect();
    let folder = std::fs::read_dir(format!("/proc/{}/fd", relay.child.id())).unwrap();
    // One that is gone by now is not counted.
    let links = folder.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| !pages.iter().any(|page| *link.as_os_str() == **page)).count()
}

/// As the kernel's table has it.
const LISTENING: &str = "0A";

#[test]
fn the_figures_of_the_process_are_those_of_the_operating_system() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 123 && exec "$0" "$@""#,
        &[front(), &MONITORED, &["--rate-limit", "off", "--max-connections", "50"]].concat(),
    ));
    let metrics = metrics_of(&relay);
    assert_eq!(sample(metrics, "process_max_fds"), 123.0);
    let before = descriptors(&relay, metrics);
    let idle: Vec<_> =
        (0..20).map(|number| relay.binary(&fresh_id(&format!("open-{number}")))).collect();
    assert_eq!(descriptors(&relay, metrics), before + 20);
    drop(idle);

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let started = sample(metrics, "process_start_time_seconds");
    assert!((now - 120.0..=now).contains(&started), "{started} {now}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: f64 = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    let told = sample(metrics, "process_resident_memory_bytes") / 1024.0;
    assert!((resident * 0.8..resident * 1.2).contains(&told), "{told} KiB, {resident} KiB");
}

#[test]
fn failed_accepts_are_counted_one_by_one() {
    let relay = Running::spawn(program_in_shell(
        r#"ulimit -n 40 && exec "$0" "$@""#,
        &[plain(Plain::NobodyAccepts), &MONITORED, &["--rate-limit", "off"]].concat(),
    ));
    let metrics = metrics_of(&relay);
    assert_eq!(sample(metrics, "pyrycode_relay_accept_errors_total"), 0.0);
    // One more than there are descriptors for, so that the first that comes free ends the failures.
    let mut crowd = Vec::new();
    let until = Instant::now() + deadline();
    while relay.lines("accept_failed").is_empty() {
        let mut newcomer = connect(relay.address());
        newcomer.write_all(binary_head(&fresh_id("crowd")).as_bytes()).unwrap();
        newcomer.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        while newcomer.peek(&mut [0]).is_err() && relay.lines("accept_failed").is_empty() {
            assert!(Instant::now() < until, "{} connections, nothing has failed", crowd.len());
        }
        crowd.push(newcomer);
    }
    drop(crowd);
    let logged: f64 = relay.wait("accepting_again").field("failures").parse().unwrap();
    assert!(logged >= 1.0);
    assert_eq!(sample(metrics, "pyrycode_relay_accept_errors_total"), logged);
}

#[test]
fn without_the_option_or_with_an_empty_one_nothing_is_served() {
    for value in ["", "off"] {
        let relay = Running::start(&["--metrics-listen", value]);
        relay.address();
        assert!(relay.lines("serving_metrics").is_empty());
        let page = request(relay.address(), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").0;
        assert!(page.starts_with("HTTP/1.1 404 "), "{page}");
    }
}

#[test]
fn an_address_that_others_can_reach_needs_leave() {
    for address in ["0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:9464", "[::ffff:192.0.2.1]:9464"] {
        let output = run(program(&["--metrics-listen", address]));
        assert_eq!(output.status.code(), Some(2), "{address}");
        let told = text(&output.stderr);
        assert!(told.contains("--metrics-public") && told.contains("127.0.0.1:"), "{told}");
    }
    for address in ["127.0.0.1:0", "127.9.9.9:0"] {
        metrics_of(&Running::start(&["--metrics-listen", address]));
    }
    metrics_of(&Running::start(&["--metrics-listen", ":0", "--metrics-public"]));
    let mut by_variable = program(&["--listen", "127.0.0.1:0"]);
    by_variable.env("PYRYCODE_RELAY_METRICS_LISTEN", "0.0.0.0:0");
    by_variable.env("PYRYCODE_RELAY_METRICS_PUBLIC", "true");
    metrics_of(&Running::spawn(by_variable));
}

#[test]
fn an_address_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let relay = Running::start(&["--metrics-listen", &address]);
    let (code, log) = relay.wait_for_end();
    assert_eq!(code, Some(1));
    assert!(log.join("\n").contains(&format!("cannot serve metrics at {address}")), "{log:?}");
}

fn status(arguments: &[&str]) -> Output {
    run(program(&[&["status"], arguments].concat()))
}

#[test]
fn status_tells_a_healthy_relay_by_its_table_its_json_and_its_exit_code() {
    let relay = monitored();
    let _pair = relay.pair(&fresh_id("told"));
    let url = format!("http://{}", metrics_of(&relay));
    let output = status(&[&url]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let values: Vec<_> = table.lines().map(|line| line.split_at(16)).collect();
    assert!(values.iter().all(|(name, _)| name.ends_with("  ")), "aligned: {table}");
    for (name, value) in [("status", "ok"), ("binaries", "1"), ("phones", "1")] {
        assert!(values.iter().any(|(n, v)| n.trim() == name && *v == value), "{name}: {table}");
    }
    assert!(!table.contains('\x1b'), "no colour where it is no terminal");

    let output = status(&["--json", &url]);
    assert_eq!(output.status.code(), Some(0));
    let page: serde_json::Value = serde_json::from_str(text(&output.stdout)).unwrap();
    assert_eq!((page["status"].as_str(), page["connected_phones"].as_u64()), (Some("ok"), Some(1)));
}

#[test]
fn status_asks_the_health_page_where_there_are_no_metrics() {
    let relay = Running::plain(Plain::ItsOwnClients, &[]);
    let address = relay.address().at;
    for url in
        [format!("http://{address}"), format!("http://{address}/healthz"), address.to_string()]
    {
        let output = status(&[&url]);
        assert_eq!(output.status.code(), Some(0), "{url}: {}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("status    ok\n"), "{}", text(&output.stdout));
    }
    let mut command = program(&["status"]);
    command.env("PYRYCODE_RELAY_METRICS_LISTEN", "");
    command.env("PYRYCODE_RELAY_LISTEN", format!(":{},127.0.0.1:1", address.port()));
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn status_looks_where_the_environment_says() {
    let relay = monitored();
    let mut command = program(&["status"]);
    command.env("PYRYCODE_RELAY_METRICS_LISTEN", metrics_of(&relay).to_string());
    let output = run(command);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("longest turn"));
}

#[test]
fn status_exits_with_1_for_what_is_no_healthy_relay() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = status(&[&format!("http://{closed}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not answer"), "{}", text(&output.stderr));
    for answer in [
        "HTTP/1.1 500 Oops\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"problem\",\"problems\":[\"hot\"]}",
        "SSH-2.0-x\r\n",
        "",
    ] {
        let output = against(answer);
        assert_eq!(output.status.code(), Some(1), "{answer:?}: {}", text(&output.stdout));
    }
    let output = against("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"problem\",\"problems\":[\"hot\"]}");
    assert!(text(&output.stdout).ends_with("problem  hot\n"), "{}", text(&output.stdout));
}

/// `status` against a server that gives this answer to everybody.
fn against(answer: &'static str) -> Output {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/status.json", server.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let output = status(&[&url]);
    serving.join().unwrap();
    output
}

#[test]
fn status_exits_with_2_for_what_it_cannot_ask() {
    for arguments in [&["https://x"][..], &["http://x:y"], &["--nonsense"], &["a", "b"]] {
        let output = status(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_ne!(text(&output.stderr), "");
    }
    // Options of the relay are none of the subcommand's.
    let output = run(program(&["--grace", "1s", "status"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn status_is_coloured_on_a_terminal_unless_no_color_is_set() {
    let relay = monitored();
    let url = format!("http://{}", metrics_of(&relay));
    // util-linux: a terminal of its own for the command.
    let on_a_terminal = |no_color: &str| {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command"]);
        command.arg(format!("{PROGRAM} status {url}")).arg("/dev/null").env("NO_COLOR", no_color);
        run(command)
    };
    let output = on_a_terminal("");
    assert!(text(&output.stdout).contains("\x1b[32mok\x1b[0m"), "{}", text(&output.stdout));
    let output = on_a_terminal("1");
    assert!(!text(&output.stdout).contains('\x1b'), "{}", text(&output.stdout));
}
