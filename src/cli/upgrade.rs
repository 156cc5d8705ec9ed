//! `pyrycode-relay upgrade`: has a running relay hand over to its program file, and waits for the outcome.
//!
//! All that it knows of the relay is what `/proc` says: the relay counts its upgrades in its environment, and the
//! count grows by the `exec` alone. Nothing of the process is run: under this name anybody may run anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::clock;
use crate::config;
use crate::handover;
use crate::limits::{UPGRADE_NOTICED, UPGRADE_POLLS, UPGRADE_STARTS};

/// Has the relay with this PID, or the only one that runs, hand over. Returns a sentence that says so once the new
/// program is at work; the error is a sentence too.
pub fn upgrade(pid: Option<i32>) -> Result<String, String> {
    let proc = Path::new("/proc");
    let relay = match pid {
        Some(pid) => Process::new(proc, pid),
        None => find(proc)?,
    };
    let before = relay.start_time().ok_or_else(|| format!("there is no process {}", relay.pid))?;
    let count = relay.upgrades().map_err(|error| relay.explain(&error))?;
    // A relay that has just started, or was just upgraded, does not catch it yet. Any other program may die of it, also
    // one that catches it, as a shell does to tidy up before it ends.
    if !wait_until(UPGRADE_STARTS, || relay.is_named_so() && relay.catches_the_signal()) {
        return Err(format!(
            "process {} is no relay, or one too old to hand over, which SIGUSR2 would end: restart it instead",
            relay.pid
        ));
    }
    relay.signal().map_err(|error| relay.explain(&error))?;
    let (mut is_there, mut has_begun) = (true, false);
    let is_over = wait_until(UPGRADE_NOTICED, || {
        is_there = relay.start_time() == Some(before);
        has_begun = has_begun
            || match relay.upgrades() {
                Ok(now) => now != count,
                // By becoming a program that this user may not read, the process became one that he may not look at.
                Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
            };
        // The new program catches signals once it has taken everything over.
        !is_there || has_begun && relay.catches_the_signal()
    });
    let (pid, seconds) = (relay.pid, UPGRADE_NOTICED.as_secs());
    match (is_there, is_over, has_begun) {
        (false, ..) => Err(format!("the relay (PID {pid}) has ended; {LOG_SAYS_WHY}")),
        (true, true, _) => Ok(format!("the relay (PID {pid}) was upgraded")),
        (true, false, true) => Err(format!(
            "the relay (PID {pid}) runs the new program, which is not ready after {seconds} s; {LOG_SAYS_WHY}"
        )),
        (true, false, false) => Err(format!(
            "the relay (PID {pid}) goes on with the old program: no upgrade within {seconds} s; {LOG_SAYS_WHY}, \
             event upgrade_failed"
        )),
    }
}

const LOG_SAYS_WHY: &str = "its log says why: journalctl -u pyrycode-relay";

/// What the kernel calls a relay, whatever its file is called.
const NAME: &str = "pyrycode-relay";

/// Has the kernel call this process a relay.
pub fn take_name() {
    // Without it nothing but `pyrycode-relay upgrade` finds less.
    let _ = rustix::thread::set_name(c"pyrycode-relay");
}

/// The only relay that runs.
fn find(proc: &Path) -> Result<Process, String> {
    let entries = fs::read_dir(proc).map_err(|error| format!("cannot read /proc: {error}"))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let relays: Vec<Process> =
        pids.map(|pid| Process::new(proc, pid)).filter(Process::is_relay).collect();
    let is_child = |relay: &Process| {
        // That of a relay is its trial of a new program.
        let parent = relay.parent();
        relays.iter().any(|other| Some(other.pid) == parent)
    };
    let mut found: Vec<_> = relays.iter().filter(|relay| !is_child(relay)).cloned().collect();
    found.sort_unstable_by_key(|relay| relay.pid);
    match found.as_slice() {
        [] => Err("no running relay was found: give its process by --pid PID".to_owned()),
        [only] => Ok(only.clone()),
        several => {
            let pids: Vec<_> = several.iter().map(|relay| relay.pid.to_string()).collect();
            let pids = pids.join(", ");
            Err(format!("several relays are running, PIDs {pids}: choose one by --pid PID"))
        }
    }
}

/// A process, there or not, as its directory in `/proc` shows it.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    directory: PathBuf,
}

impl Process {
    fn new(proc: &Path, pid: i32) -> Self {
        Self { pid, directory: proc.join(pid.to_string()) }
    }

    /// Whether it relays: a subcommand does not, and neither does a process that has ended.
    fn is_relay(&self) -> bool {
        let Some(arguments) = self.text("cmdline").filter(|_| self.is_named_so()) else {
            return false;
        };
        let second = arguments.split('\0').nth(1).unwrap_or_default();
        let is_subcommand = config::command().find_subcommand(second).is_some();
        !is_subcommand && self.start_time().is_some()
    }

    /// When it started, in the kernel's ticks; `None` once it has ended. An `exec` does not change it, and no later
    /// process of this PID has the same.
    fn start_time(&self) -> Option<u64> {
        let fields = self.stat()?;
        let has_ended = matches!(fields.first()?.as_str(), "Z" | "X");
        fields.get(19)?.parse().ok().filter(|_| !has_ended)
    }

    fn parent(&self) -> Option<i32> {
        self.stat()?.get(1)?.parse().ok()
    }

    /// The fields of `stat` after the name, which may hold blanks: the third of the whole line is the first here.
    fn stat(&self) -> Option<Vec<String>> {
        let stat = self.text("stat")?;
        let (_, fields) = stat.rsplit_once(')')?;
        Some(fields.split_whitespace().map(str::to_owned).collect())
    }

    /// How often it was upgraded.
    fn upgrades(&self) -> io::Result<u64> {
        let environment = fs::read(self.directory.join("environ"))?;
        let count = environment.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(handover::COUNT.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value).ok()?.parse().ok()
        });
        Ok(count.unwrap_or(0))
    }

    /// Whether it has the name that a relay gives itself, whatever its file is called.
    fn is_named_so(&self) -> bool {
        self.text("comm").is_some_and(|name| name.trim_end() == NAME)
    }

    fn catches_the_signal(&self) -> bool {
        let status = self.text("status").unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        caught.is_some_and(|set| set >> (Signal::USR2.as_raw() - 1) & 1 == 1)
    }

    fn signal(&self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(kill_process(pid, Signal::USR2)?)
    }

    fn explain(&self, error: &io::Error) -> String {
        let pid = self.pid;
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!(
                    "process {pid} is another user's, or of a program that has capabilities or may not be read: run \
                     this as the relay's user, or as root"
                )
            }
            io::ErrorKind::NotFound => format!("there is no process {pid}"),
            _ => format!("cannot upgrade process {pid}: {error}"),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let bytes = fs::read(self.directory.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Asks again and again, for `patience`, and returns whether the answer was yes in the end.
fn wait_until(patience: Duration, mut question: impl FnMut() -> bool) -> bool {
    let begun = clock::now();
    loop {
        if question() {
            return true;
        }
        if clock::since(begun) > patience {
            return false;
        }
        thread::sleep(UPGRADE_POLLS);
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A `/proc` of these processes: PID, name, command line, state, parent.
    fn proc(processes: &[(i32, &str, &str, &str, i32)]) -> TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        for (pid, name, command, state, parent) in processes {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            let zeros = ["0"; 17].join(" ");
            let stat = format!("{pid} ({name}) {state} {parent} {zeros} {pid}00 0 0\n");
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
            fs::write(directory.join("cmdline"), command.replace(' ', "\0")).unwrap();
        }
        proc
    }

    fn found(processes: &[(i32, &str, &str, &str, i32)]) -> Result<i32, String> {
        find(proc(processes).path()).map(|relay| relay.pid)
    }

    #[test]
    fn the_only_relay_is_found_among_others() {
        let relay = (20, NAME, "/usr/bin/pyrycode-relay --grace 5s", "S", 1);
        let others = [
            (1, "systemd", "/sbin/init", "S", 0),
            (2, "odd) S 20 (", "odd", "S", 1),
            (30, NAME, "pyrycode-relay upgrade", "R", 1),
            (31, NAME, "pyrycode-relay status --json", "S", 1),
            (32, NAME, "pyrycode-relay check", "S", 1),
            (33, NAME, "", "Z", 1),
            (34, NAME, "/usr/bin/pyrycode-relay --grace 5s", "S", 20),
        ];
        assert_eq!(found(&[&others[..], &[relay]].concat()), Ok(20));
        let none = found(&others[..6]).unwrap_err();
        assert!(none.contains("no running relay") && none.contains("--pid"), "{none}");
    }

    #[test]
    fn several_relays_are_named() {
        let relays = [(100, NAME, "relay", "S", 1), (20, NAME, "relay", "S", 1)];
        let several = found(&relays).unwrap_err();
        assert!(several.contains("PIDs 20, 100") && several.contains("--pid"), "{several}");
    }

    #[test]
    fn a_process_tells_its_upgrades_and_its_signals() {
        let proc = proc(&[(7, NAME, "relay", "S", 1)]);
        let process = Process::new(proc.path(), 7);
        assert_eq!((process.start_time(), process.parent()), (Some(700), Some(1)));
        let file = |name: &str, text: &str| fs::write(process.directory.join(name), text).unwrap();
        for (environment, count) in [
            ("", 0),
            ("A=1\0PYRYCODE_RELAY_UPGRADES=12\0B=2\0", 12),
            ("X_PYRYCODE_RELAY_UPGRADES=3\0PYRYCODE_RELAY_UPGRADES_X=4\0", 0),
        ] {
            file("environ", environment);
            assert_eq!(process.upgrades().unwrap(), count);
        }
        for (set, caught) in [("0000000100004e42", true), ("0000000000004642", false), ("", false)]
        {
            file("status", &format!("Name:\trelay\nSigIgn:\t0000000000000800\nSigCgt:\t{set}\n"));
            assert_eq!(process.catches_the_signal(), caught, "{set}");
        }
    }
}
