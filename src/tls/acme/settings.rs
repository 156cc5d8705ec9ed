//! What is ordered and where, and in which files that is kept.

use crate::tls::cache::Cache;

/// Which certificate is ordered where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    /// The names that it is for, as [`crate::tls::names::domain`] makes them; at least
    /// one.
    pub(crate) domains: Vec<String>,
    /// To whom the directory may write, as [`crate::tls::names::contact`] makes them; may
    /// be none.
    pub(crate) contacts: Vec<String>,
    /// The directory's URL, as [`crate::tls::names::directory`] makes it.
    pub(crate) directory: String,
    /// Where the account's key and the certificate are kept.
    pub(crate) cache: Cache,
}

impl Settings {
    /// The file of the certificate and its key: another one for another directory or other names,
    /// in whatever order these are given.
    pub(super) fn certificate_file(&self) -> String {
        let mut domains: Vec<_> = self.domains.iter().map(String::as_str).collect();
        domains.sort_unstable();
        domains.dedup();
        let first = domains.first().copied().unwrap_or_default();
        // Names are ASCII. Long enough to tell files apart by eye, and far below what a file
        // system takes.
        let label = &first[..first.len().min(LABEL_BYTES)];
        format!("{label}-{:016x}.pem", hash(&self.directory, &domains))
    }

    /// The file of the account's key: another one for another directory or other contacts, which
    /// the directory is told only when an account is new.
    pub(super) fn account_file(&self) -> String {
        let mut contacts: Vec<_> = self.contacts.iter().map(String::as_str).collect();
        contacts.sort_unstable();
        contacts.dedup();
        format!("account-{:016x}.der", hash(&self.directory, &contacts))
    }
}

/// FNV-1a, 64 bits: tells settings apart that one operator chooses, and is no defence.
fn hash(directory: &str, others: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for text in std::iter::once(&directory).chain(others) {
        // A byte that is in none of them ends each.
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// How much of the first name is in the name of a file.
const LABEL_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(domains: &[&str], contacts: &[&str], directory: &str) -> Settings {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let place = tempfile::tempdir().unwrap();
        Settings {
            domains: owned(domains),
            contacts: owned(contacts),
            directory: directory.to_owned(),
            cache: Cache::open(&place.path().join("cache")).unwrap(),
        }
    }

    #[test]
    fn other_names_and_another_directory_have_other_files() {
        let own = settings(&["a.b", "c.d"], &["mailto:x@a.b"], "https://ca/");
        let file = own.certificate_file();
        assert!(file.starts_with("a.b-") && file.ends_with(".pem"), "{file}");
        let others = [
            settings(&["a.b"], &[], "https://ca/"),
            settings(&["a.b", "c.d"], &[], "https://ca/2"),
            settings(&["a.b", "c.d", "e.f"], &[], "https://ca/"),
            settings(&["a.bc", ".d"], &[], "https://ca/"),
            settings(&["a.bc.d"], &[], "https://ca/"),
        ];
        for other in others {
            assert_ne!(other.certificate_file(), file, "{other:?}");
        }
        for same in [&["c.d", "a.b"][..], &["a.b", "c.d", "a.b"]] {
            assert_eq!(settings(same, &[], "https://ca/").certificate_file(), file);
        }
        let long = "x".repeat(63) + "." + &"y".repeat(63);
        assert!(settings(&[&long], &[], "https://ca/").certificate_file().len() < 100);
    }

    #[test]
    fn an_account_belongs_to_a_directory_and_its_contacts() {
        let own = settings(&["a.b"], &["mailto:x@a.b"], "https://ca/").account_file();
        assert!(own.starts_with("account-"), "{own}");
        assert_eq!(settings(&["c.d"], &["mailto:x@a.b"], "https://ca/").account_file(), own);
        assert_ne!(settings(&["a.b"], &[], "https://ca/").account_file(), own);
        assert_ne!(settings(&["a.b"], &["mailto:x@a.b"], "https://ca/2").account_file(), own);
    }
}
