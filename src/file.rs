//! Files that the operator names, read without waiting for anybody.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Why a file cannot be read; what is displayed is a sentence for the operator, without the path.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// What the system says.
    Failed(io::Error),
    /// A directory, a pipe, a socket or a device.
    NotRegular,
    /// It has more than this number of bytes.
    TooLarge(u64),
}

/// Reads a regular file of `most` bytes at most, and says what kind of file it is. Symbolic links
/// are followed. Waits for the disk and for nobody else: anything but a regular file is an error.
pub(crate) fn read(path: &Path, most: u64) -> Result<(Vec<u8>, Metadata), Unreadable> {
    // Before it is opened: to open a device can already do something.
    if !fs::metadata(path)?.is_file() {
        return Err(Unreadable::NotRegular);
    }
    // It may have been replaced since. To open a FIFO waits for its writer unless told otherwise.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Unreadable::NotRegular);
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= most => Ok((bytes, metadata)),
        _ => Err(Unreadable::TooLarge(most)),
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::NotRegular => f.write_str("it is no regular file"),
            Self::TooLarge(most) => write!(f, "it has more than {most} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    #[test]
    fn a_regular_file_is_read_through_links_and_up_to_its_bound() {
        let place = std::env::temp_dir().join(format!("file-{:032x}", fastrand::u128(..)));
        fs::create_dir(&place).unwrap();
        let (file, link) = (place.join("file"), place.join("link"));
        fs::write(&file, "12345").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 5).unwrap().0, b"12345");
        assert!(matches!(read(&file, 4), Err(Unreadable::TooLarge(4))));
        assert!(matches!(read(&place.join("other"), 5), Err(Unreadable::Failed(_))));
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let fifo = std::env::temp_dir().join(format!("fifo-{:032x}", fastrand::u128(..)));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let paths = [fifo.clone(), "/".into(), "/dev/zero".into(), "/dev/ptmx".into()];
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            paths.iter().try_for_each(|path| sender.send(read(path, 1)).map_err(drop))
        });
        for _ in 0..4 {
            let answer = answers.recv_timeout(Duration::from_secs(20)).expect("it does not wait");
            assert!(matches!(answer, Err(Unreadable::NotRegular)), "{answer:?}");
        }
        fs::remove_file(fifo).unwrap();
    }
}
