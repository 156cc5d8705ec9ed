//! The options of TLS, and what they come to together.

use std::path::PathBuf;

use clap::Args;

use crate::limits;
use crate::net::listen::{Listen, parse_listen};
use crate::tls::names;

/// The options as they are written.
#[derive(Args, Clone, Debug)]
pub(crate) struct TlsOptions {
    /// Address to listen on for TLS; repeatable
    ///
    /// Written as for --listen, which then has no default: give it too for both. The certificate
    /// comes from --tls-cert and --tls-key, or by ACME for every --domain.
    #[arg(
        long, visible_alias = "https-listen", env = "PYRYCODE_RELAY_TLS_LISTEN",
        value_name = "ADDR", value_delimiter = ',', value_parser = parse_listen,
        help_heading = "TLS"
    )]
    pub(crate) tls_listen: Vec<Listen>,

    /// File with the certificate chain, PEM, the server's own certificate first
    ///
    /// It and the key are read again when they change and on SIGHUP. A pair that cannot be used
    /// leaves the one before in place.
    #[arg(
        long,
        env = "PYRYCODE_RELAY_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "TLS"
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// File with its private key, PEM; not readable by every user of the machine
    #[arg(
        long,
        env = "PYRYCODE_RELAY_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS"
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Name that clients dial; repeatable
    ///
    /// Over TLS no other name is served, and without --tls-cert a certificate for these names is
    /// got and renewed by ACME. The directory must reach this relay at port 443 of each of them.
    #[arg(
        long, env = "PYRYCODE_RELAY_DOMAIN", value_name = "NAME", value_delimiter = ',',
        value_parser = names::domain, help_heading = "TLS"
    )]
    pub(crate) domain: Vec<String>,

    /// E-mail address that the ACME directory may write to
    #[arg(
        long, env = "PYRYCODE_RELAY_ACME_CONTACT", value_name = "EMAIL", value_delimiter = ',',
        value_parser = names::contact, help_heading = "TLS"
    )]
    pub(crate) acme_contact: Vec<String>,

    /// URL of the ACME directory, which this machine must trust
    #[arg(
        long, env = "PYRYCODE_RELAY_ACME_DIRECTORY", value_name = "URL",
        default_value = limits::DEFAULT_ACME_DIRECTORY, value_parser = names::directory,
        help_heading = "TLS"
    )]
    pub(crate) acme_directory: String,

    /// Directory for certificates got by ACME and the account's key, mode 0700
    ///
    /// Without it: the state directory that systemd gives (StateDirectory=).
    #[arg(long, env = "PYRYCODE_RELAY_CERT_CACHE", value_name = "DIR", help_heading = "TLS")]
    pub(crate) cert_cache: Option<PathBuf>,
}

/// TLS as it is to be.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Where to listen; none where the sockets come from systemd.
    pub listen: Vec<Listen>,
    /// The names that are served; none for any.
    pub(crate) domains: Vec<String>,
    /// Where the certificate comes from.
    pub(crate) source: CertificateSource,
}

/// Where the certificate comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CertificateSource {
    /// From these files.
    Files {
        /// The certificate chain.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// From an ACME directory.
    Acme {
        /// Its URL.
        directory: String,
        /// Whom it may write to.
        contacts: Vec<String>,
        /// Where account and certificate are kept.
        cache: PathBuf,
    },
}

impl TlsSettings {
    /// What the options come to; none without any of them. `state_directory` is systemd's, if there
    /// is one. The error is a sentence for the operator.
    pub(super) fn from_options(
        options: TlsOptions,
        state_directory: Option<PathBuf>,
    ) -> Result<Option<Self>, String> {
        let TlsOptions { tls_listen, tls_cert, tls_key, domain, .. } = options;
        let source = match (tls_cert, tls_key) {
            (Some(chain), Some(key)) => {
                if !options.acme_contact.is_empty() || options.cert_cache.is_some() {
                    return Err("--acme-contact and --cert-cache are for certificates by ACME: \
                                leave them out, or --tls-cert and --tls-key"
                        .into());
                }
                CertificateSource::Files { chain, key }
            }
            _ if !domain.is_empty() => {
                let cache = options.cert_cache.or(state_directory).ok_or(
                    "--domain needs --cert-cache, a directory of mode 0700 for the certificates",
                )?;
                let (directory, contacts) = (options.acme_directory, options.acme_contact);
                CertificateSource::Acme { directory, contacts, cache }
            }
            _ if tls_listen.is_empty() => {
                if options.cert_cache.is_some() || !options.acme_contact.is_empty() {
                    return Err("certificates by ACME need a --domain".into());
                }
                return Ok(None);
            }
            _ => {
                return Err("--tls-listen needs a certificate: --tls-cert and --tls-key, or a \
                            --domain to get one for"
                    .into());
            }
        };
        Ok(Some(Self { listen: tls_listen, domains: domain, source }))
    }
}
