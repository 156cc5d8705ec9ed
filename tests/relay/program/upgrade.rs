//! An upgrade: the program hands everything over to the file that stands in its place now.

use std::fs::{self, Permissions};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;
use crate::rig::ws::{CLOSE, CONTINUATION, TEXT, encode};
use crate::rig::{both, fresh_id, large_message, notice, scaled};

/// What is said of a file that cannot be run. The emulator of a board cannot tell a program's parent that
/// the `exec` of its child failed: all that shows is how the child ended.
pub const fn cannot_run(reason: &str) -> &str {
    if cfg!(relay_emulated) { "exit code 127" } else { reason }
}

/// Prints the program.
const THE_SAME: &str = "cat \"$1\"";

/// A program whose file can be replaced.
struct Upgradable {
    running: Running,
    file: PathBuf,
    _directory: TempDir,
}

impl Upgradable {
    fn start(arguments: &[&str]) -> Self {
        Self::limited(&[&UNLIMITED, arguments].concat())
    }

    /// One whose limits by address are those of `arguments`.
    fn limited(arguments: &[&str]) -> Self {
        Self::listening(front(), arguments)
    }

    /// One with these listeners.
    fn listening(front: &[&str], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay");
        install(&file, THE_SAME);
        let stretched = stretched(arguments);
        let mut command = Command::new(&file);
        command.args(front).args(arguments).args(stretched).env_clear();
        Self { running: Running::spawn(command), file, _directory: directory }
    }

    /// Puts what this line of shell prints in the place of the program file; `$1` is the program.
    fn replace(&self, line: &str) {
        install(&self.file, line);
    }

    /// Puts the same program there, in another file.
    fn renew(&self) {
        self.replace(THE_SAME);
    }

    /// Has it hand over, and waits until it has.
    fn upgrade(&self) -> Line {
        let done = self.running.lines("upgraded").len();
        self.running.signal("USR2");
        self.running.wait_nth("upgraded", done + 1)
    }

    /// Has it try to hand over, and returns why it did not.
    fn fail(&self) -> String {
        let failed = self.running.lines("upgrade_failed").len();
        self.running.signal("USR2");
        self.running.wait_nth("upgrade_failed", failed + 1).field("reason").to_owned()
    }

    /// Whether the process runs the file that stands in its place, or that a link there names. An emulator is the same file for ever.
    fn is_in_place(&self) -> bool {
        let path = format!("/proc/{}/exe", self.running.child.id());
        fs::metadata(path).unwrap().ino() == fs::metadata(&self.file).unwrap().ino()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.running.child.id())).unwrap().count()
    }

    /// Resident memory in KiB.
    fn resident(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.running.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

#[test]
fn the_program_in_its_place_goes_on_with_everybody() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("moves");
    exchange(&mut binary, &mut phone, &conn_id);
    relay.renew();
    assert!(cfg!(relay_emulated) || !relay.is_in_place());
    let upgraded = relay.upgrade();
    assert!(cfg!(relay_emulated) || relay.is_in_place());
    assert_eq!(upgraded.field("from"), env!("CARGO_PKG_VERSION"));
    assert_eq!(upgraded.field("to"), env!("CARGO_PKG_VERSION"));
    assert_eq!((upgraded.field("connections"), upgraded.field("slots")), ("2", "1"));
    exchange(&mut binary, &mut phone, &conn_id);
    let (mut other, mut newcomer, other_id) = relay.running.pair("newcomer");
    exchange(&mut other, &mut newcomer, &other_id);
    assert_eq!(relay.running.lines("server_claimed").len(), 2, "nobody claims again");
    for peer in [&mut binary, &mut phone, &mut other, &mut newcomer] {
        peer.send_close(1000, "");
        peer.expect_close_code(1000);
    }
    relay.running.stop();
}

#[test]
fn half_sent_messages_and_requests_go_on_at_whatever_byte_they_are() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("halves");
    let (up, down) = ("\"up and \u{fc}p\"", envelope(&conn_id, "\"down\""));
    let fragments = |text: &str| {
        let (one, rest) = text.as_bytes().split_at(3);
        let (two, three) = rest.split_at(4);
        [
            encode(false, TEXT, one),
            encode(false, CONTINUATION, two),
            encode(true, CONTINUATION, three),
        ]
        .concat()
    };
    let head = phone_head("halves");
    let (up_bytes, down_bytes) = (fragments(up), fragments(&down));
    let longest = up_bytes.len().max(down_bytes.len()).max(head.len());
    let mut request = connect(relay.running.address());
    let steps = 12;
    let piece = |bytes: &[u8], step: usize| {
        let at = |step| bytes.len() * step / steps;
        bytes[at(step)..at(step + 1)].to_vec()
    };
    for step in 0..steps {
        phone.send_raw(&piece(&up_bytes, step));
        binary.send_raw(&piece(&down_bytes, step));
        request.write_all(&piece(head.as_bytes(), step)).unwrap();
        if step + 1 < steps {
            relay.upgrade();
        }
    }
    assert!(longest > steps);
    assert_eq!(binary.read_text(), envelope(&conn_id, up));
    assert_eq!(phone.read_text(), "\"down\"");
    let mut newcomer = Ws::after_request(request);
    newcomer.sync();
    relay.running.stop();
}

#[test]
fn queues_windows_and_closes_in_progress_go_on() {
    const MESSAGES: usize = 60;
    let relay = Upgradable::start(&["--grace", "20s"]);
    // A phone that does not read, with a queue and a close behind it.
    let (mut binary, mut slow, slow_id) = relay.running.pair("slow-phone");
    for number in 0..MESSAGES {
        binary.send_text(&envelope(&slow_id, &large_message(number)));
    }
    binary.send_text(&format!("{{\"conn_id\":\"{slow_id}\",\"close_code\":4001}}"));
    binary.sync();
    // A slot in its window, with a message kept.
    let (away, mut waiting, waiting_id) = relay.running.pair("away");
    away.drop_connection();
    relay.running.wait("server_released");
    waiting.send_text("\"kept\"");
    waiting.sync();
    // A binary that does not read: its phone is held back.
    let (mut deaf, mut held, held_id) = relay.running.pair("deaf-binary");
    let (begun, rest) = held.send_until_blocked(10_000, large_message);
    assert!(begun < 10_000, "the phone is held back");
    for _ in 0..3 {
        let upgraded = relay.upgrade();
        assert_eq!(upgraded.field("kept_messages"), "1");
    }
    for number in 0..MESSAGES {
        assert!(slow.read_text() == large_message(number), "message {number} of the queue");
    }
    slow.expect_close_code(4001);
    let mut back = relay.running.binary("away");
    assert_eq!(back.read_text(), envelope(&waiting_id, "\"kept\""));
    exchange(&mut back, &mut waiting, &waiting_id);
    let sender = std::thread::spawn(move || {
        held.send_raw(&rest);
        held
    });
    for number in 0..begun {
        let expected = envelope(&held_id, &large_message(number));
        assert!(deaf.read_text() == expected, "message {number} of the phone that is held back");
    }
    let mut held = sender.join().unwrap();
    exchange(&mut deaf, &mut held, &held_id);
    relay.running.stop();
}

#[test]
fn what_is_left_of_a_window_and_of_a_probe_is_what_it_was() {
    let relay = Upgradable::start(&["--grace", "3s", "--probe-timeout", "3s"]);
    let (away, mut waiting, _) = relay.running.pair("expires");
    let (mut ghost, mut loyal, loyal_id) = relay.running.pair("ghost");
    exchange(&mut ghost, &mut loyal, &loyal_id);
    ghost.prove();
    ghost.answers_pings = false;
    let mut newcomer = relay.running.binary("ghost");
    away.drop_connection();
    relay.running.wait("server_released");
    let begun = Instant::now();
    // Each of them would begin anew otherwise.
    while begun.elapsed() < scaled(Duration::from_millis(2000)) {
        relay.upgrade();
        std::thread::sleep(scaled(Duration::from_millis(300)));
    }
    waiting.expect_close(4404, "no server with that id");
    relay.running.wait("server_id_takeover");
    // It was asked once.
    let mut pings = 0;
    loop {
        let frame = ghost.read_besides_proofs();
        match frame.opcode {
            CLOSE => break assert_eq!(frame.close(), (1011, "heartbeat timeout".to_owned())),
            _ => pings += 1,
        }
    }
    assert_eq!(pings, 1);
    assert_eq!(newcomer.read_text(), notice(&loyal_id, 4404));
    newcomer.sync();
    loyal.expect_close_code(4404);
    assert_eq!(relay.running.lines("server_id_conflict").len(), 0);
    relay.running.stop();
}

#[test]
fn counters_come_along() {
    let relay = Upgradable::start(&["--metrics-listen", "127.0.0.1:0"]);
    let metrics = relay.running.wait("serving_metrics").address();
    let count = || {
        let (_, page) =
            crate::rig::request(metrics, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let line = page.lines().find_map(|line| {
            line.strip_prefix(
                "pyrycode_relay_frames_forwarded_total{direction=\"phone_to_binary\"} ",
            )
        });
        line.unwrap_or_else(|| panic!("{page}")).parse::<u64>().unwrap()
    };
    let (mut binary, mut phone, conn_id) = relay.running.pair("counted");
    exchange(&mut binary, &mut phone, &conn_id);
    binary.sync();
    let before = count();
    assert!(before > 0);
    relay.upgrade();
    assert_eq!(count(), before);
    relay.running.stop();
}

#[test]
fn whoever_has_used_up_his_attempts_has_to_wait_as_long() {
    let limits = ["--rate-limit", "1/min", "--rate-burst", "3", "--max-connections-per-ip", "3"];
    let relay = Upgradable::limited(&limits);
    let address = relay.running.address();
    let refused = || {
        let head = binary_head("limited");
        crate::rig::request(address, head).0.starts_with("HTTP/1.1 429 ")
    };
    let _held: Vec<_> = (0..3).map(|_| relay.running.binary(&fresh_id("limited"))).collect();
    assert!(refused());
    relay.upgrade();
    assert!(refused(), "its burst has not come back");
    relay.running.stop();
}

#[test]
fn whatever_is_wrong_with_the_new_program_the_old_one_says_so_and_goes_on() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("stays");
    let script = |text: &str| format!("printf '%s\\n' '#!/bin/sh' '{text}'");
    // The head of a program for another machine.
    let foreign = "head -c 18 \"$1\"; printf \"\\363\\377\"; tail -c +21 \"$1\"".to_owned();
    let cases = [
        (script("exit 3"), "ended with exit code 3"),
        (script("echo error: no such option >&2; exit 2"), "error: no such option"),
        (script("kill -SEGV $$"), "was ended by signal 11"),
        (script("exec sleep 60"), "did not answer within 5 s"),
        // What it has started goes on, and holds its standard error open.
        (script("sleep 60 <&- >&- & exit 4"), "ended with exit code 4 without an answer"),
        (foreign, cannot_run("is not a program for this machine")),
        ("echo rubbish".to_owned(), cannot_run("is not a program for this machine")),
    ];
    for (line, expected) in cases {
        relay.replace(&line);
        let reason = relay.fail();
        assert!(reason.contains(expected), "{reason} does not say: {expected}");
        exchange(&mut binary, &mut phone, &conn_id);
    }
    fs::set_permissions(&relay.file, Permissions::from_mode(0o644)).unwrap();
    let reason = relay.fail();
    assert!(reason.contains(cannot_run("may not be run: chmod +x it")), "{reason}");
    fs::remove_file(&relay.file).unwrap();
    let reason = relay.fail();
    assert!(reason.contains(cannot_run("is not there")), "{reason}");
    exchange(&mut binary, &mut phone, &conn_id);
    let (mut other, mut newcomer, other_id) = relay.running.pair("still-served");
    exchange(&mut other, &mut newcomer, &other_id);
    relay.renew();
    relay.upgrade();
    exchange(&mut binary, &mut phone, &conn_id);
    relay.running.stop();
}

#[test]
fn a_program_that_was_tried_and_then_cannot_be_run_leaves_everything_as_it_was() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("late-failure");
    // It says that it can take over, and may not be run any more.
    relay
        .replace(&format!("printf '%s\\n' '#!/bin/sh' 'chmod 644 \"$0\"' 'exec {PROGRAM} \"$@\"'"));
    let reason = relay.fail();
    assert!(reason.contains("may not be run: chmod +x it"), "{reason}");
    exchange(&mut binary, &mut phone, &conn_id);
    // Nothing keeps a socket open that the relay closes.
    let stdin = fs::read_link(format!("/proc/{}/fd/0", relay.running.child.id())).unwrap();
    assert_eq!(stdin, PathBuf::from("/dev/null"));
    let mut silent = connect(relay.running.address());
    silent.write_all(b"GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404 "));
    relay.renew();
    relay.upgrade();
    exchange(&mut binary, &mut phone, &conn_id);
    relay.running.stop();
}

#[test]
fn a_file_that_is_not_the_one_that_was_tried_is_not_run() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("replaced");
    // It says that it can take over, and is another one by then.
    let lines = [
        "#!/bin/sh",
        "echo \"#!/bin/true\" >\"$0.other\" && chmod 755 \"$0.other\" && mv \"$0.other\" \"$0\"",
        &format!("exec {PROGRAM} \"$@\""),
    ];
    relay.replace(&format!("printf '%s\\n' '{}'", lines.join("' '")));
    let reason = relay.fail();
    assert!(reason.contains("was replaced while it was tried"), "{reason}");
    exchange(&mut binary, &mut phone, &conn_id);
    relay.renew();
    relay.upgrade();
    exchange(&mut binary, &mut phone, &conn_id);
    relay.running.stop();
}

/// A relay that a shell starts in `place` by `line`; its program is `file`.
fn started_by(line: &str, place: &TempDir, file: PathBuf) -> Upgradable {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{line} \"$@\""), "sh"]).args(unlimited()).env_clear();
    command.current_dir(place.path());
    let running = Running::spawn(command);
    Upgradable { running, file, _directory: tempfile::tempdir().unwrap() }
}

#[test]
fn the_directory_in_which_it_was_started_may_be_another_one_later() {
    let place = tempfile::tempdir().unwrap();
    let [now, file] = ["now", "now/relay"].map(|name| place.path().join(name));
    fs::create_dir(&now).unwrap();
    install(&file, THE_SAME);
    let relay = started_by("cd now && exec ./relay", &place, file);
    let (mut binary, mut phone, conn_id) = relay.running.pair("moved");
    for round in 0..3 {
        let old = place.path().join(format!("old-{round}"));
        fs::rename(&now, &old).unwrap();
        if round == 1 {
            fs::remove_dir_all(&old).unwrap();
        }
        fs::create_dir(&now).unwrap();
        relay.renew();
        relay.upgrade();
        assert!(cfg!(relay_emulated) || relay.is_in_place(), "round {round}");
        exchange(&mut binary, &mut phone, &conn_id);
    }
    relay.running.stop();
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the file of the process is the emulator's")]
fn a_link_that_the_shell_found_is_followed_anew() {
    let place = tempfile::tempdir().unwrap();
    let [one, two, link] = ["one", "two", "relay"].map(|name| place.path().join(name));
    install(&one, THE_SAME);
    install(&two, THE_SAME);
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let line = format!("PATH={} && export PATH && exec relay", place.path().display());
    let relay = started_by(&line, &place, link.clone());
    relay.running.address();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&two, &link).unwrap();
    assert!(!relay.is_in_place());
    relay.upgrade();
    assert!(relay.is_in_place());
    relay.running.stop();
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator does not start without files of its own")]
fn where_files_may_have_no_size_it_goes_on_and_says_which_limit() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("relay");
    install(&file, THE_SAME);
    let relay = started_by("ulimit -S -f 0 && exec ./relay", &place, file);
    let (mut binary, mut phone, conn_id) = relay.running.pair("small");
    let reason = relay.fail();
    assert!(reason.contains("LimitFSIZE="), "{reason}");
    exchange(&mut binary, &mut phone, &conn_id);
    relay.running.stop();
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator does not fit into the address space")]
fn without_memory_for_the_state_it_goes_on_and_says_which_limit() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    const MESSAGES: usize = 300;
    let relay = Upgradable::start(&[]);
    let (mut binary, mut slow, slow_id) = relay.running.pair("large");
    for number in 0..MESSAGES {
        binary.send_text(&envelope(&slow_id, &large_message(number)));
    }
    binary.sync();
    let status = fs::read_to_string(format!("/proc/{}/status", relay.running.child.id())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    let limit = |current: Option<u64>| {
        let process = Pid::from_child(&relay.running.child);
        prlimit(Some(process), Resource::As, Rlimit { current, maximum: None }).unwrap();
    };
    limit(Some(size * 1024 + 8 * 1024 * 1024));
    let reason = relay.fail();
    assert!(reason.contains("LimitAS="), "{reason}");
    limit(None);
    relay.upgrade();
    for number in 0..MESSAGES {
        assert!(slow.read_text() == large_message(number), "message {number} of the queue");
    }
    relay.running.stop();
}

#[test]
fn whoever_is_not_in_the_allow_list_any_more_is_closed_by_the_new_program() {
    let place = tempfile::tempdir().unwrap();
    let list = place.path().join("allowed");
    fs::write(&list, "stays\ngoes\n").unwrap();
    let relay = Upgradable::start(&["--allow-server", list.to_str().unwrap()]);
    let (mut binary, mut phone, conn_id) = relay.running.pair("stays");
    let mut revoked = relay.running.binary("goes");
    fs::write(&list, "stays\n").unwrap();
    relay.upgrade();
    revoked.expect_close_code(1008);
    exchange(&mut binary, &mut phone, &conn_id);
    relay.running.stop();
}

#[test]
#[cfg_attr(relay_emulated, ignore = "the emulator needs descriptors of its own")]
fn without_descriptors_it_goes_on_and_says_which_limit() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay");
    install(&file, THE_SAME);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""]).arg(&file);
    command.args(unlimited()).args(["--max-connections", "16"]).env_clear();
    let relay = Upgradable { running: Running::spawn(command), file, _directory: directory };
    let (mut binary, mut phone, conn_id) = relay.running.pair("tight");
    // Heads in progress take the rest.
    let mut idle = Vec::new();
    while relay.descriptors() < 40 {
        idle.push(connect_plainly(relay.running.address()));
        if idle.len() > 60 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let reason = relay.fail();
    assert!(reason.contains("LimitNOFILE="), "{reason}");
    exchange(&mut binary, &mut phone, &conn_id);
    drop(idle);
    relay.running.stop();
}

fn connect_plainly(address: Address) -> std::net::TcpStream {
    std::net::TcpStream::connect(address.at).unwrap()
}

#[test]
fn a_stop_while_the_new_program_is_tried_is_a_stop() {
    let relay = Upgradable::start(&[]);
    let (mut binary, mut phone, _) = relay.running.pair("stops");
    relay.replace("printf '%s\\n' '#!/bin/sh' 'exec sleep 60'");
    relay.running.signal("USR2");
    relay.running.wait("upgrade_begun");
    relay.running.signals(&["USR2", "TERM"]);
    for peer in [&mut binary, &mut phone] {
        peer.expect_close(1001, "shutting down");
        peer.send_close(1001, "");
    }
    let (code, log) = relay.running.wait_for_end();
    assert_eq!(code, Some(0), "{log:#?}");
}

/// An emulator does not hold signals back for the program that comes after it.
#[test]
fn signals_at_any_moment_of_an_upgrade_are_neither_lost_nor_deadly() {
    for pause in [0, 1, 2, 4, 8, 16, 32, 64] {
        let relay = Upgradable::start(&[]);
        let (mut binary, mut phone, conn_id) = relay.running.pair("signals");
        relay.running.signal("USR2");
        std::thread::sleep(Duration::from_millis(pause));
        relay.running.signals(&["USR1", "USR2"]);
        relay.running.wait("upgraded");
        exchange(&mut binary, &mut phone, &conn_id);
        relay.running.signal("USR2");
        std::thread::sleep(Duration::from_millis(pause));
        relay.running.signal("TERM");
        for peer in [&mut binary, &mut phone] {
            // The notice of the phone's end may come before.
            let close = loop {
                let frame = peer.read();
                if frame.opcode == CLOSE {
                    break frame.close();
                }
            };
            assert_eq!(close, (1001, "shutting down".to_owned()));
            peer.send_close(1001, "");
        }
        let (code, log) = relay.running.wait_for_end();
        assert_eq!(code, Some(0), "{pause} ms: {log:#?}");
    }
}

/// Servers whose daemons and phones talk all the time.
struct Household {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    talking: Vec<JoinHandle<()>>,
}

impl Household {
    /// `servers` with three phones each, on a few threads, spread over these listeners.
    fn start(addresses: &[Address], servers: usize) -> Self {
        const THREADS: usize = 4;
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let mut households: Vec<Vec<_>> = (0..THREADS).map(|_| Vec::new()).collect();
        for number in 0..servers {
            let id = fresh_id("household");
            let address = |place| addresses[(number + place) % addresses.len()];
            let binary = Ws::upgrade(address(0), &binary_head(&id));
            let phones: Vec<_> =
                (0..3).map(|place| Ws::upgrade(address(place), &phone_head(&id))).collect();
            households[number % THREADS].push((binary, phones));
        }
        let talk = |mut households: Vec<(Ws, Vec<Ws>)>| {
            let (over, rounds) = (Arc::clone(&over), Arc::clone(&rounds));
            std::thread::spawn(move || {
                let mut number = 0_u64;
                while !over.load(Ordering::SeqCst) {
                    for (binary, phones) in &mut households {
                        for phone in &mut *phones {
                            number += 1;
                            phone.send_text(&format!("{{\"up\":{number}}}"));
                        }
                        for _ in &*phones {
                            let text = binary.read_text();
                            let (id, rest) = text.split_once("\",\"frame\":").expect("an envelope");
                            let id = id.strip_prefix("{\"conn_id\":\"").expect("an envelope");
                            // They come in the order in which the relay read them.
                            let said: u64 = rest
                                .trim_start_matches("{\"up\":")
                                .trim_end_matches('}')
                                .parse()
                                .expect("a number");
                            assert!(number - 3 < said && said <= number, "{said} of {number}");
                            binary.send_text(&envelope(id, &format!("{{\"down\":{said}}}")));
                        }
                        for (place, phone) in phones.iter_mut().enumerate() {
                            let own = number - 2 + place as u64;
                            assert_eq!(phone.read_text(), format!("{{\"down\":{own}}}"));
                        }
                    }
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                for (mut binary, phones) in households {
                    binary.sync();
                    for mut phone in phones {
                        phone.sync();
                    }
                }
            })
        };
        let talking = households.into_iter().map(talk).collect();
        Self { over, rounds, talking }
    }

    /// Ends it; everything that was said has arrived. Returns how often everybody spoke.
    fn end(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.talking {
            thread.join().expect("everything arrived once and in order");
        }
        self.rounds.load(Ordering::SeqCst)
    }
}

/// A number from the environment, for the whole run.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are for whoever asks with --nocapture")]
fn many_upgrades_in_a_row_drop_nobody_and_newcomers_are_served() {
    let emulated = cfg!(relay_emulated);
    let upgrades = setting("RELAY_UPGRADES", if emulated { 3 } else { 8 });
    let servers = setting("RELAY_UPGRADE_SERVERS", if emulated { 4 } else { 20 });
    let relay = Upgradable::listening(&both(), &UNLIMITED);
    // Half of everybody comes over TLS, where there is any.
    let listeners = if cfg!(feature = "tls") { 2 } else { 1 };
    let addresses: Vec<_> =
        (1..=listeners).map(|nth| relay.running.wait_nth("listening", nth).address()).collect();
    let household = Household::start(&addresses, servers);
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let newcomers = std::thread::spawn(move || {
        let mut served = 0;
        while !ended.load(Ordering::SeqCst) {
            let id = fresh_id("newcomer");
            // An emulated handshake may take longer than the second that an upgrade gives it.
            let address = addresses[if emulated { 0 } else { served % addresses.len() }];
            let mut binary = Ws::upgrade(address, &binary_head(&id));
            let mut phone = Ws::upgrade(address, &phone_head(&id));
            phone.send_text("1");
            assert!(binary.read_text().ends_with("\"frame\":1}"));
            assert!(answers(address));
            binary.send_close(1000, "");
            binary.expect_close_code(1000);
            phone.send_close(1000, "");
            phone.expect_close_code(1000);
            served += 1;
        }
        served
    });
    let mut slowest = 0;
    let mut first = None;
    for _ in 0..upgrades {
        let before = household.rounds.load(Ordering::SeqCst);
        let upgraded = relay.upgrade();
        slowest = slowest.max(upgraded.field("milliseconds").parse::<u64>().unwrap());
        let until = Instant::now() + deadline();
        while household.rounds.load(Ordering::SeqCst) < before + 4 {
            assert!(Instant::now() < until, "everybody still talks");
            std::thread::sleep(Duration::from_millis(5));
        }
        first.get_or_insert((relay.descriptors(), relay.resident()));
    }
    over.store(true, Ordering::SeqCst);
    let served = newcomers.join().expect("every newcomer is served");
    let (descriptors, resident) = first.unwrap();
    let (descriptors_now, resident_now) = (relay.descriptors(), relay.resident());
    let rounds = household.end();
    println!(
        "{upgrades} upgrades under {} connections: the longest pause was {slowest} ms; \
         {rounds} rounds, {served} newcomers; {descriptors} and {descriptors_now} descriptors, \
         {resident} and {resident_now} KiB after the first and the last",
        4 * servers
    );
    // Newcomers come and go.
    assert!(descriptors_now <= descriptors + 8, "{descriptors} -> {descriptors_now}");
    // An emulator's memory is its own.
    assert!(
        emulated || resident_now <= resident + resident / 4 + 1024,
        "{resident} -> {resident_now} KiB"
    );
    assert!(served > upgrades, "{served} newcomers");
    assert_eq!(relay.running.lines("upgrade_failed").len(), 0);
}

#[test]
fn a_link_in_the_place_of_the_program_file_is_followed_anew() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_owned();
    let copy = |name: &str| {
        let file = place.join(name);
        install(&file, THE_SAME);
        file
    };
    let (one, two) = (copy("relay-1"), copy("relay-2"));
    let link = place.join("relay");
    let point = |target: &Path| {
        let new = place.join("new");
        std::os::unix::fs::symlink(target, &new).unwrap();
        fs::rename(&new, &link).unwrap();
    };
    point(&one);
    let mut command = Command::new(&link);
    command.args(unlimited()).env_clear();
    let relay =
        Upgradable { running: Running::spawn(command), file: link.clone(), _directory: directory };
    relay.running.address();
    point(&two);
    relay.upgrade();
    assert!(cfg!(relay_emulated) || relay.is_in_place());
    relay.running.stop();
}
