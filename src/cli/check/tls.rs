//! The part of the subcommand `check` about TLS: the certificate, and where it comes from.
//!
//! It reads files, writes nothing, and asks no ACME directory.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Report;
use crate::config::Config;
use crate::telemetry::printable::printable;
use crate::tls::certificates::Pair;
use crate::tls::files::Files;
use crate::tls::options::{CertificateSource, TlsSettings};

impl Report {
    /// Examines the certificate and its source.
    pub(super) fn tls(&mut self, config: &Config, now: SystemTime) {
        let Some(settings) = &config.tls else { return };
        if settings.listen.is_empty() {
            self.row("TLS", "no address", "a socket of systemd's");
            self.notes.push(
                "without --tls-listen TLS is spoken only at a socket of systemd's: \
                 pyrycode-relay-tls.socket has to be enabled"
                    .to_owned(),
            );
        }
        match &settings.source {
            CertificateSource::Files { chain, key } => self.files(settings, chain, key, now),
            CertificateSource::Acme { directory, cache, .. } => {
                self.domains(settings);
                self.row("ACME", printable(directory), "not asked");
                self.cache(cache);
            }
        }
    }

    fn files(&mut self, settings: &TlsSettings, chain: &Path, key: &Path, now: SystemTime) {
        let shown = printable(&chain.display().to_string());
        let pair = match Files::new(chain.to_owned(), key.to_owned()).read(now) {
            Ok(pair) => pair,
            Err(bad) => {
                self.row("certificate", shown, "cannot be used");
                self.wrong.push(printable(&bad.to_string()));
                self.domains(settings);
                return;
            }
        };
        let days = pair.not_after().duration_since(now).unwrap_or_default().as_secs() / DAY;
        self.row("certificate", shown, format!("{days} days left"));
        let mut label = "names";
        for name in pair.names() {
            self.row(std::mem::take(&mut label), printable(&name), "in the certificate");
        }
        self.domains(settings);
        self.served(settings, &pair);
        if pair.not_before() > now + CLOCK_TOLERANCE {
            let from = humantime::format_rfc3339_seconds(pair.not_before());
            self.notes
                .push(format!("the certificate is not valid before {from}: is the clock right?"));
        }
        if fs::metadata(key).is_ok_and(|found| is_for_root_alone(&found)) {
            self.notes.push(format!(
                "root alone may read the key {}, and the systemd service runs as a user of its own: \
                 certificate.conf gives it a copy",
                printable(&key.display().to_string())
            ));
        }
    }

    fn domains(&mut self, settings: &TlsSettings) {
        let mut label = "domains";
        for domain in &settings.domains {
            self.row(std::mem::take(&mut label), printable(domain), "served over TLS");
        }
        if settings.domains.is_empty() {
            self.row(label, "any", "served over TLS");
        }
    }

    fn served(&mut self, settings: &TlsSettings, pair: &Pair) {
        for domain in settings.domains.iter().filter(|domain| !pair.is_for(domain)) {
            self.wrong.push(format!(
                "the certificate is not for {}: whoever dials that name will not trust it",
                printable(domain)
            ));
        }
    }

    /// The directory is opened, or made, when the relay starts.
    fn cache(&mut self, cache: &Path) {
        let shown = printable(&cache.display().to_string());
        let wrong = match fs::metadata(cache) {
            Ok(found) if !found.is_dir() => Some("it is no directory".to_owned()),
            Ok(found) => {
                let mode = found.permissions().mode() & 0o777;
                self.row("cache", &shown, format!("mode {mode:04o}"));
                (mode != OWNER_ALONE).then(|| {
                    format!("its mode is {mode:04o}, and has to be 0700: run chmod 0700 {shown}")
                })
            }
            // The last part is made by the relay.
            Err(_) if cache.parent().is_some_and(Path::is_dir) => {
                self.row("cache", &shown, "will be made");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            self.wrong.push(format!("the certificate cache {shown} cannot be used: {wrong}"));
        }
    }
}

fn is_for_root_alone(key: &Metadata) -> bool {
    const GROUP_MAY_READ: u32 = 0o040;
    key.uid() == 0 && (key.gid() == 0 || key.mode() & GROUP_MAY_READ == 0)
}

const OWNER_ALONE: u32 = 0o700;
const DAY: u64 = 24 * 60 * 60;
/// Clocks differ by a little without anything being wrong.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
