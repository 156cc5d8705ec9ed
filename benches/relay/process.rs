//! What the operating system knows of a process: processor time, memory, wake-ups, system calls.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Processor time that a process has used, all threads together.
pub fn cpu_time(pid: u32) -> Duration {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let mut nanoseconds = 0;
    for task in tasks.flatten() {
        // In nanoseconds, where the figures of `stat` are in ticks of 10 ms.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanoseconds +=
            text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    }
    Duration::from_nanos(nanoseconds)
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> f64 {
    status(pid, "VmRSS:") * 1024.0
}

/// Resident memory at its highest, in bytes.
pub fn resident_peak(pid: u32) -> f64 {
    status(pid, "VmHWM:") * 1024.0
}

/// How often the threads of a process have gone to sleep, hence been woken.
pub fn wakeups(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
        .map(|text| field(&text, "voluntary_ctxt_switches:"))
        .sum()
}

fn status(pid: u32, name: &str) -> f64 {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(f64::NAN, |text| field(&text, name))
}

fn field(text: &str, name: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .unwrap_or(f64::NAN)
}

/// Keeps the client, and what it starts from now on, to the first core.
pub fn pin_to_first_core() -> io::Result<()> {
    Ok(sched_setaffinity(None, &one_core(0))?)
}

/// Keeps all threads of a process to the last core.
pub fn pin_to_last_core(pid: u32) -> io::Result<()> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last = online.trim().rsplit(['-', ',']).next().and_then(|digits| digits.parse().ok());
    let last = one_core(last.ok_or_else(|| io::Error::other("cannot tell the cores"))?);
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let name = task.file_name();
        let thread = name.to_str().and_then(|digits| digits.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(thread, &last)?;
    }
    Ok(())
}

fn one_core(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

/// How much of one core a process used over a time.
pub struct CpuShare {
    pid: u32,
    began: Instant,
    used: Duration,
}

impl CpuShare {
    pub fn begin(pid: u32) -> Self {
        Self { pid, began: Instant::now(), used: cpu_time(pid) }
    }

    /// Processor time since the beginning.
    pub fn spent(&self) -> Duration {
        cpu_time(self.pid).saturating_sub(self.used)
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// 1.0 is one core all of the time.
    pub fn share(&self) -> f64 {
        self.spent().as_secs_f64() / self.elapsed().as_secs_f64()
    }
}

/// `strace -c` attached to a process: its system calls by name.
pub struct Trace {
    strace: Child,
    output: std::path::PathBuf,
}

impl Trace {
    /// Attaches; `None` where there is no strace, or no permission to trace.
    pub fn attach(pid: u32) -> Option<Self> {
        let output = std::env::temp_dir().join(format!("relay-bench-strace-{pid}"));
        let strace = Command::new("strace")
            .args(["-f", "-c", "-q", "-U", "name,calls", "-o"])
            .arg(&output)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut trace = Self { strace, output };
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(trace.strace.try_wait(), Ok(None)) {
                return None;
            }
            let attached = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().all(|task| {
                fs::read_to_string(task.path().join("status"))
                    .is_ok_and(|text| field(&text, "TracerPid:") > 0.0)
            });
            if attached {
                return Some(trace);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        trace.finish().ok();
        None
    }

    /// Detaches and returns the calls by name.
    pub fn finish(mut self) -> io::Result<BTreeMap<String, f64>> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT)?;
        self.strace.wait()?;
        let text = fs::read_to_string(&self.output)?;
        let _ = fs::remove_file(&self.output);
        Ok(text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (first, second) = (words.next()?, words.next()?);
                let by_name =
                    |name: &str, calls: &str| Some((name.to_owned(), calls.parse().ok()?));
                (first != "total").then(|| by_name(first, second)).flatten()
            })
            .collect())
    }
}
