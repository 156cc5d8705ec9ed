//! What the operating system says about this process. A figure that it does not tell is absent.

use std::time::UNIX_EPOCH;

use crate::clock;

/// The figures of one moment.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Process {
    /// Memory in use, in bytes.
    pub(crate) resident: Option<u64>,
    /// Open descriptors.
    pub(crate) descriptors: Option<u64>,
    /// How many there may be.
    pub(crate) descriptor_limit: Option<u64>,
}

impl Process {
    /// Asks.
    pub(crate) fn look() -> Self {
        Self {
            resident: resident(),
            descriptors: descriptors(),
            descriptor_limit: rlimit::Resource::NOFILE.get_soft().ok(),
        }
    }
}

/// Seconds since 1970; zero on a clock before that.
pub(crate) fn wall_clock() -> f64 {
    clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Memory in use, in bytes.
pub(crate) fn resident() -> Option<u64> {
    // It is the whole process's, and so none of a simulation's.
    #[cfg(feature = "simulation")]
    if clock::simulated::is_running() {
        return None;
    }
    // Not statm: that counts pages, which are 4 or 16 KiB, depending on the board.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}

fn descriptors() -> Option<u64> {
    // Since Linux 6.2 the size of the folder is their number; before, they have to be counted.
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        // One of the list is the list's own.
        0 => Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1)),
        number => Some(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let before = Process::look();
        let resident = before.resident.unwrap();
        assert!((256 * 1024..1 << 40).contains(&resident), "{resident} bytes");
        assert!(before.descriptor_limit.unwrap() >= before.descriptors.unwrap());
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close some meanwhile.
        assert!(Process::look().descriptors.unwrap() >= before.descriptors.unwrap() + 30);
        drop(files);
    }
}
