//! What the machine has for this process: memory and descriptors. What it does not tell is absent.

use std::path::Path;

/// The figures of one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Board {
    /// Memory of the machine, in bytes.
    pub(crate) memory: Option<u64>,
    /// What the process's control group, or one around it, may use of that, in bytes.
    pub(crate) memory_limit: Option<u64>,
    /// Open descriptors: the limit now, and how far the process may raise it.
    pub(crate) descriptors: Option<(u64, u64)>,
}

impl Board {
    /// Asks.
    pub fn look() -> Self {
        let root = Path::new("/");
        Self {
            memory: memory(root),
            memory_limit: memory_limit(root),
            descriptors: rlimit::Resource::NOFILE.get().ok(),
        }
    }
}

fn memory(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit from the process's group up to the root, in either hierarchy.
fn memory_limit(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = text.lines().filter_map(|line| {
        // `0::/path` is the unified hierarchy; the older one names its controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (mount, file) = match parts.next()? {
            "" => ("sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let (mount, path) = (root.join(mount), parts.next()?.trim_start_matches('/'));
        let group = mount.join(path);
        let around = group.ancestors().take_while(|folder| folder.starts_with(&mount));
        around.filter_map(|folder| limit(&folder.join(file))).min()
    });
    limits.min()
}

/// `max` means none, and the older hierarchy says it by a number that no machine has.
fn limit(file: &Path) -> Option<u64> {
    let limit = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        let tree = tree(&[("proc/meminfo", "MemTotal:         927816 kB\nMemFree: 1 kB\n")]);
        assert_eq!(memory(tree.path()), Some(927_816 * 1024));
        assert_eq!(memory(Path::new("/nowhere")), None);
        assert_eq!(memory_limit(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_smallest_limit_of_the_group_and_those_around_it_counts() {
        let unified = tree(&[
            ("proc/self/cgroup", "0::/system.slice/relay.service\n"),
            ("sys/fs/cgroup/system.slice/relay.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
            ("sys/fs/cgroup/memory.max", "999999999\n"),
            ("sys/fs/memory.max", "1\n"),
        ]);
        assert_eq!(memory_limit(unified.path()), Some(256 << 20));
        let older = tree(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/pod\n0::/\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(memory_limit(older.path()), Some(1 << 20));
        let none = tree(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")]);
        assert_eq!(memory_limit(none.path()), None);
    }
}
