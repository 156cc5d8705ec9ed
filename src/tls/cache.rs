//! The directory in which keys and certificates that were ordered outlive the program.
//!
//! Files are of mode 0600 from their first moment and appear under their name as a whole or not at
//! all. What a loss of power leaves of a write is cleared away later.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::clock;
use crate::file::{self, Unreadable};
use crate::limits::{LEFTOVER_AGE, MAX_CACHED_BYTES};

/// A directory that only its owner, this program, can look into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens the directory, which is made if only its last part is missing. Blocks for as long as
    /// the file system does.
    ///
    /// The error is a sentence for the operator: it is no directory, others may look into it, it is
    /// somebody else's, or nothing can be written there.
    pub(crate) fn open(directory: &Path) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| {
            format!("the certificate cache {} {what}: {error}", directory.display())
        };
        match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("cannot be made", error)),
        }
        let found = fs::metadata(directory).map_err(|error| failed("cannot be opened", error))?;
        let refused = |why: String| {
            Err(format!("the certificate cache {} is refused: {why}", directory.display()))
        };
        if !found.is_dir() {
            return refused("it is no directory".to_owned());
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o777 != 0o700 {
            return refused(format!(
                "its mode is {mode:04o}; for keys it must be 0700, so that nobody else looks into it"
            ));
        }
        // What is made here is ours: so is the directory, or it is not.
        let trial = directory.join(temporary("trial"));
        let made = create(&trial)
            .and_then(|file| file.metadata())
            .map_err(|error| failed("cannot be written to", error));
        let _ = fs::remove_file(&trial);
        let (owner, us) = (found.uid(), made?.uid());
        if owner != us {
            return refused(format!("it belongs to user {owner}, and this is user {us}"));
        }
        clear_leftovers(directory);
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where the file of that name is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is in the file of that name; `None` if there is none. An error for what is no file, or
    /// larger than [`MAX_CACHED_BYTES`]. Does not block the event loop.
    pub(crate) async fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        blocking::unblock(move || read(&path)).await
    }

    /// Makes these bytes the content of the file of that name, on the disk when this returns.
    /// Does not block the event loop.
    ///
    /// Cancel safety: the write may happen or not, and never in part.
    pub(crate) async fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let (directory, name) = (self.directory.clone(), name.to_owned());
        blocking::unblock(move || write(&directory, &name, &bytes)).await
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match file::read(path, MAX_CACHED_BYTES) {
        Ok((bytes, _)) => Ok(Some(bytes)),
        Err(Unreadable::Failed(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Unreadable::Failed(error)) => Err(error),
        Err(unreadable) => Err(io::Error::other(unreadable.to_string())),
    }
}

/// A new file takes the place of the old one: whoever reads finds either, and so does whoever
/// starts after a loss of power.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(temporary(name));
    let written = create(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(name))
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(directory)?.sync_all()
}

/// Makes a file that was not there, for us alone; the umask can only take away.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A name beside the real one, which nobody else has at this moment.
fn temporary(name: &str) -> String {
    format!(".{name}-{:016x}", fastrand::u64(..))
}

fn is_temporary(name: &str) -> bool {
    let Some((_, number)) = name.strip_prefix('.').and_then(|name| name.rsplit_once('-')) else {
        return false;
    };
    number.len() == 16 && number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Removes what writes left that were interrupted; not what another process may be writing now.
fn clear_leftovers(directory: &Path) {
    // Best effort: a leftover takes a few kilobytes and harms nobody.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|found| found.modified());
        let age = modified.ok().and_then(|modified| clock::wall().duration_since(modified).ok());
        let is_old = age.is_some_and(|age| age >= LEFTOVER_AGE);
        if is_old && entry.file_name().to_str().is_some_and(is_temporary) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use futures_lite::future::block_on;
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn directory(place: &TempDir, mode: u32) -> PathBuf {
        let path = place.path().join(format!("{mode:o}"));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_that_is_missing_is_made_for_us_alone() {
        let place = tempdir().unwrap();
        let path = place.path().join("new");
        Cache::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(names(&path), [""; 0], "nothing is left of the trial");
        Cache::open(&path).unwrap();
        let error = Cache::open(&place.path().join("not/there")).unwrap_err();
        assert!(error.contains("cannot be made"), "{error}");
    }

    #[test]
    fn a_directory_that_others_may_look_into_is_refused() {
        let place = tempdir().unwrap();
        for wrong in [0o755, 0o750, 0o701, 0o710, 0o740, 0o777, 0o1777, 0o500, 0o600] {
            let error = Cache::open(&directory(&place, wrong)).unwrap_err();
            assert!(error.contains(&format!("mode is {wrong:04o}")), "{error}");
            assert!(error.contains("0700"), "{error}");
        }
        Cache::open(&directory(&place, 0o700)).unwrap();
        Cache::open(&directory(&place, 0o2700)).unwrap();
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let place = tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Cache::open(&file).unwrap_err();
        assert!(error.contains("no directory"), "{error}");
    }

    #[test]
    fn the_directory_of_another_user_is_refused() {
        let place = tempdir().unwrap();
        let path = directory(&place, 0o700);
        // Only the superuser can give a directory away; others cannot even write there.
        if std::os::unix::fs::chown(&path, Some(65534), None).is_err() {
            return;
        }
        let error = Cache::open(&path).unwrap_err();
        assert!(error.contains("belongs to user 65534"), "{error}");
        assert_eq!(names(&path), [""; 0]);
    }

    #[test]
    fn what_was_written_is_read_and_nobody_else_can() {
        let place = tempdir().unwrap();
        let path = directory(&place, 0o700);
        let cache = Cache::open(&path).unwrap();
        block_on(async {
            assert_eq!(cache.read("a").await.unwrap(), None);
            cache.write("a", b"one".to_vec()).await.unwrap();
            cache.write("b", b"".to_vec()).await.unwrap();
            cache.write("a", b"another".to_vec()).await.unwrap();
            assert_eq!(cache.read("a").await.unwrap().as_deref(), Some(&b"another"[..]));
            assert_eq!(cache.read("b").await.unwrap().as_deref(), Some(&b""[..]));
        });
        let mut found = names(&path);
        found.sort();
        assert_eq!(found, ["a", "b"]);
        assert_eq!((mode(&path.join("a")), mode(&path.join("b"))), (0o600, 0o600));
    }

    #[test]
    fn a_file_that_others_could_read_is_replaced_by_one_that_they_cannot() {
        let place = tempdir().unwrap();
        let cache = Cache::open(&directory(&place, 0o700)).unwrap();
        fs::write(cache.path("a"), "old").unwrap();
        fs::set_permissions(cache.path("a"), Permissions::from_mode(0o644)).unwrap();
        block_on(cache.write("a", b"new".to_vec())).unwrap();
        assert_eq!(mode(&cache.path("a")), 0o600);
    }

    #[test]
    fn whoever_has_the_old_file_open_reads_all_of_it() {
        let place = tempdir().unwrap();
        let cache = Cache::open(&directory(&place, 0o700)).unwrap();
        block_on(cache.write("a", b"old".to_vec())).unwrap();
        let mut open = File::open(cache.path("a")).unwrap();
        block_on(cache.write("a", b"newer".to_vec())).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old", "it was not written over");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let place = tempdir().unwrap();
        let path = directory(&place, 0o700);
        let cache = Cache::open(&path).unwrap();
        // No file can take the place of a directory.
        fs::create_dir(path.join("a")).unwrap();
        assert!(block_on(cache.write("a", b"new".to_vec())).is_err());
        assert_eq!(names(&path), ["a"]);
    }

    #[test]
    fn what_interrupted_writes_left_is_cleared_away_and_nothing_else() {
        let place = tempdir().unwrap();
        let path = directory(&place, 0o700);
        let old = clock::wall() - LEFTOVER_AGE;
        let number = "0123456789abcdef";
        let kept =
            ["a", ".a", &format!(".a-{number}0"), &format!("a-{number}"), ".a-0123456789ABCDEF"];
        let young = format!(".young-{number}");
        for name in kept.into_iter().chain([&*format!(".old-{number}")]) {
            File::create(path.join(name)).unwrap().set_modified(old).unwrap();
        }
        File::create(path.join(&young)).unwrap();
        Cache::open(&path).unwrap();
        let (mut found, mut expected) = (names(&path), kept.map(str::to_owned).to_vec());
        expected.push(young);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_file_or_far_too_large_is_not_read() {
        let place = tempdir().unwrap();
        let cache = Cache::open(&directory(&place, 0o700)).unwrap();
        fs::create_dir(cache.path("directory")).unwrap();
        assert!(block_on(cache.read("directory")).is_err());
        let most = usize::try_from(MAX_CACHED_BYTES).unwrap();
        fs::write(cache.path("most"), vec![0; most]).unwrap();
        assert_eq!(block_on(cache.read("most")).unwrap().map(|bytes| bytes.len()), Some(most));
        fs::write(cache.path("more"), vec![0; most + 1]).unwrap();
        assert!(block_on(cache.read("more")).is_err());
    }
}
