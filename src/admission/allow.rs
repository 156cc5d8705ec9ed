//! The allow-list: which server-ids may be claimed, read from a file.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::file::{self, Unreadable};
use crate::ids::ServerId;
use crate::limits::{ALLOW_FILE_BYTES, ALLOW_FILE_IDS};

/// The server-ids that may be claimed; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct AllowList(HashSet<Box<str>>);

/// Where the list comes from, and what it was when it was read last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AllowFile {
    path: PathBuf,
    list: AllowList,
}

/// Why a file is no list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// It cannot be read; what the system says.
    Unreadable(String),
    /// A directory, a pipe or a device, which could keep the event loop waiting.
    NoFile,
    /// Above [`ALLOW_FILE_BYTES`].
    TooLarge,
    /// More than [`ALLOW_FILE_IDS`].
    TooMany,
    /// No server-id at all: far more likely a file that is still being written than a wish.
    Empty,
    /// The line of this number, the first being 1, is neither a server-id nor a comment.
    Line(usize),
}

impl AllowList {
    /// Takes the content of a file: one server-id a line, blanks around it ignored, empty lines
    /// and lines that begin with `#` skipped. Behind a server-id and a blank, `#` begins a comment
    /// too. An id that stands there twice counts once.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Broken> {
        if text.len() > ALLOW_FILE_BYTES {
            return Err(Broken::TooLarge);
        }
        let mut ids = HashSet::new();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
            let (id, rest) = line.split_at(end);
            let rest = rest.trim_ascii_start();
            let id = ServerId::parse(id).filter(|_| rest.is_empty() || rest.starts_with(b"#"));
            ids.insert(Box::from(id.ok_or(Broken::Line(number))?.as_str()));
            if ids.len() > ALLOW_FILE_IDS {
                return Err(Broken::TooMany);
            }
        }
        if ids.is_empty() { Err(Broken::Empty) } else { Ok(Self(ids)) }
    }

    /// Whether `server` may be claimed.
    pub(crate) fn has(&self, server: &ServerId) -> bool {
        self.0.contains(server.as_str())
    }

    /// How many ids it holds.
    pub(crate) fn ids(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the ids: who knows one can claim it.
        write!(f, "AllowList({} ids)", self.ids())
    }
}

impl AllowFile {
    /// Reads the list at `path`. Blocks for as long as the file system does.
    pub(crate) fn read(path: &Path) -> Result<Self, Broken> {
        Ok(Self { path: path.to_owned(), list: read(path)? })
    }

    /// Reads the file anew; on an error the list stays what it was.
    pub(crate) fn reread(&mut self) -> Result<(), Broken> {
        self.list = read(&self.path)?;
        Ok(())
    }

    /// The list as it was read last.
    pub(crate) fn list(&self) -> &AllowList {
        &self.list
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => f.write_str(error),
            Self::NoFile => f.write_str("it is no regular file"),
            Self::TooLarge => write!(f, "it has more than {ALLOW_FILE_BYTES} bytes"),
            Self::TooMany => write!(f, "it has more than {ALLOW_FILE_IDS} server-ids"),
            Self::Empty => f.write_str("it has no server-id"),
            Self::Line(number) => write!(
                f,
                "line {number} is no server-id (1 to 128 visible ASCII characters) and no comment"
            ),
        }
    }
}

fn read(path: &Path) -> Result<AllowList, Broken> {
    let most = u64::try_from(ALLOW_FILE_BYTES).unwrap_or(u64::MAX);
    let (text, _) = file::read(path, most).map_err(|unreadable| match unreadable {
        Unreadable::Failed(error) => Broken::Unreadable(error.to_string()),
        Unreadable::NotRegular => Broken::NoFile,
        Unreadable::TooLarge(_) => Broken::TooLarge,
    })?;
    AllowList::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, id: &str) -> bool {
        AllowList::parse(text.as_bytes()).unwrap().has(&ServerId::parse(id.as_bytes()).unwrap())
    }

    #[test]
    fn a_line_is_an_id_a_comment_or_nothing() {
        let text = "# my machines\n\nattic\n  cellar\t\r\n#shed\nbox # the old one\na#b\nbox\n";
        for id in ["attic", "cellar", "box", "a#b"] {
            assert!(has(text, id), "{id}");
        }
        for id in ["shed", "#shed", "Attic", "atti", "attic2", "#", "old"] {
            assert!(!has(text, id), "{id}");
        }
        assert_eq!(AllowList::parse(text.as_bytes()).unwrap().ids(), 4);
        assert!(has("attic", "attic"), "the last line needs no end");
        assert!(has("attic\n# caf\u{e9}, \u{0} and whatever else\n", "attic"));
    }

    #[test]
    fn what_is_neither_is_named_by_its_line() {
        let long = format!("a\nb\n{}", "x".repeat(129));
        for (text, line) in [
            ("a b", 1),
            ("a\n\n# c\nd e # f", 4),
            ("a\nb\u{e9}\nc d", 2),
            (&*long, 3),
            ("\u{feff}a", 1),
        ] {
            assert_eq!(AllowList::parse(text.as_bytes()), Err(Broken::Line(line)), "{text:?}");
            assert!(Broken::Line(line).to_string().contains(&format!("line {line} ")));
        }
    }

    #[test]
    fn a_list_is_bounded_and_never_empty() {
        for text in ["", "\n\n", "# nobody\n", " \t\r\n"] {
            assert_eq!(AllowList::parse(text.as_bytes()), Err(Broken::Empty), "{text:?}");
        }
        let ids = |count: usize| (0..count).map(|number| format!("{number}\n")).collect::<String>();
        let full = AllowList::parse(ids(ALLOW_FILE_IDS).as_bytes()).unwrap();
        assert_eq!(full.ids(), ALLOW_FILE_IDS);
        let above = ids(ALLOW_FILE_IDS + 1);
        assert_eq!(AllowList::parse(above.as_bytes()), Err(Broken::TooMany));
        let mut large = b"a\n".to_vec();
        large.resize(ALLOW_FILE_BYTES, b'#');
        large[2] = b'\n';
        assert!(AllowList::parse(&large[..2]).is_ok());
        large.push(b'\n');
        assert_eq!(AllowList::parse(&large), Err(Broken::TooLarge));
    }

    #[test]
    fn the_ids_do_not_show_in_debug_output() {
        let list = AllowList::parse(b"attic\ncellar\n").unwrap();
        assert_eq!(format!("{list:?}"), "AllowList(2 ids)");
    }

    #[test]
    fn what_is_no_regular_file_is_not_even_opened() {
        assert_eq!(AllowFile::read(Path::new("/")), Err(Broken::NoFile));
        assert_eq!(AllowFile::read(Path::new("/dev/zero")), Err(Broken::NoFile));
        assert!(matches!(
            AllowFile::read(Path::new("/nowhere/at/all")),
            Err(Broken::Unreadable(_))
        ));
    }
}
