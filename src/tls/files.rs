//! A certificate and its key in files, read again when they change.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::certificates::{BadPair, Pair};
use crate::file;

/// The two files, and what they were like when they were last read.
#[derive(Debug)]
pub(crate) struct Files {
    chain: PathBuf,
    key: PathBuf,
    seen: [Option<Stamp>; 2],
    /// The last reading failed.
    failed: bool,
}

/// Why the files cannot be used, in words for the operator.
#[derive(Debug)]
pub(crate) enum BadFiles {
    /// A file cannot be read, and why.
    Unreadable(PathBuf, String),
    /// The key may be read by every user of this machine.
    KeyForEverybody(PathBuf),
    /// They were read, and are no pair that can be used.
    Pair(PathBuf, PathBuf, BadPair),
}

/// By what a change of a file is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Who may read it.
    mode: u32,
    owner: (u32, u32),
}

impl Files {
    /// The files at these paths, not read yet.
    pub(crate) fn new(chain: PathBuf, key: PathBuf) -> Self {
        Self { chain, key, seen: [None; 2], failed: false }
    }

    /// Where the certificate is.
    pub(crate) fn chain(&self) -> &Path {
        &self.chain
    }

    /// Reads both.
    pub(crate) fn read(&mut self, now: SystemTime) -> Result<Pair, BadFiles> {
        // Before they are read: a change meanwhile is one that is yet to be seen.
        self.seen = self.stamps();
        let read = self.read_pair(now);
        self.failed = read.is_err();
        read
    }

    fn read_pair(&self, now: SystemTime) -> Result<Pair, BadFiles> {
        let chain = read(&self.chain)?.0;
        let (key, mode) = read(&self.key)?;
        if mode & 0o007 != 0 {
            return Err(BadFiles::KeyForEverybody(self.key.clone()));
        }
        Pair::from_pem(&chain, &key, now)
            .map_err(|bad| BadFiles::Pair(self.chain.clone(), self.key.clone(), bad))
    }

    /// Whether reading them may come out differently now: they have changed, or could not be used. What was
    /// wrong then need not be in the files: a directory, a mount or the date can be mended too.
    pub(crate) fn are_worth_reading(&self) -> bool {
        self.failed || self.stamps() != self.seen
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [&self.chain, &self.key].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some(Stamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
            })
        })
    }
}

impl fmt::Display for BadFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::KeyForEverybody(path) => write!(
                f,
                "every user of this machine may use the key {0}: run chmod o= {0}",
                path.display()
            ),
            Self::Pair(chain, key, bad) => {
                write!(f, "certificate {}, key {}: {bad}", chain.display(), key.display())
            }
        }
    }
}

/// What is in a file, and its mode.
fn read(path: &Path) -> Result<(Vec<u8>, u32), BadFiles> {
    let read = file::read(path, MAX_FILE_BYTES);
    read.map(|(bytes, metadata)| (bytes, metadata.permissions().mode()))
        .map_err(|why| BadFiles::Unreadable(path.to_owned(), why.to_string()))
}

/// A chain is a few KiB; a path that names something else must not fill the memory.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
