//! What both example clients share: dialling the relay, and how long to wait before trying again.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use async_net::TcpStream;
use async_tungstenite::tungstenite::http::Uri;
use async_tungstenite::tungstenite::{ClientRequestBuilder, Error};
use async_tungstenite::{WebSocketStream, client_async};
use futures_lite::{AsyncRead, AsyncWrite};

/// Where to dial: the relay's URL and the server-id, from the command line.
pub(crate) struct Target {
    /// `ws://`, or `wss://` for TLS; for example `ws://127.0.0.1:8080`.
    relay: Uri,
    /// The server-id that the binary claims and the phone asks for.
    pub(crate) server_id: String,
}

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Stream for T {}

impl Target {
    /// Takes `[RELAY-URL] [SERVER-ID]` from the command line; the error says what is wrong with them.
    pub(crate) fn from_arguments() -> Result<Self, String> {
        const USAGE: &str = "the arguments are [RELAY-URL] [SERVER-ID], for example \
                             ws://127.0.0.1:8080 demo, or wss://relay.example.org demo for TLS";
        let mut arguments = std::env::args().skip(1);
        let relay = arguments.next().unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned());
        let server_id = arguments.next().unwrap_or_else(|| "demo".to_owned());
        if arguments.next().is_some() {
            return Err(USAGE.to_owned());
        }
        let relay: Uri = relay.trim_end_matches('/').parse().map_err(|_| USAGE.to_owned())?;
        match relay.scheme_str() {
            Some("ws") => {}
            Some("wss") if cfg!(feature = "tls") => {}
            Some("wss") => return Err("this example was built without TLS".to_owned()),
            _ => return Err(USAGE.to_owned()),
        }
        Ok(Self { relay, server_id })
    }

    /// Dials `path` with the headers that it requires.
    pub(crate) async fn dial(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<WebSocketStream<Pin<Box<dyn Stream>>>, Error> {
        let (scheme, authority) = (self.relay.scheme_str(), self.relay.authority());
        let authority = authority.map_or("127.0.0.1", |authority| authority.as_str());
        let uri: Uri = format!("{}://{authority}{path}", scheme.unwrap_or("ws")).parse()?;
        let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
        let is_tls = scheme == Some("wss");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        let stream: Pin<Box<dyn Stream>> =
            if is_tls { secure(host, stream).await? } else { Box::pin(stream) };
        let request = headers.iter().fold(
            ClientRequestBuilder::new(uri)
                .with_header("X-Pyrycode-Server", &self.server_id)
                .with_header("User-Agent", "pyrycode-relay-example"),
            |request, (name, value)| request.with_header(*name, *value),
        );
        let (socket, _response) = client_async(request, stream).await?;
        Ok(socket)
    }
}

/// Shakes hands with a relay whose certificate this machine trusts; `SSL_CERT_FILE` names other roots.
#[cfg(feature = "tls")]
async fn secure(host: String, stream: TcpStream) -> io::Result<Pin<Box<dyn Stream>>> {
    use std::sync::Arc;

    use futures_rustls::TlsConnector;
    use futures_rustls::rustls::crypto::ring::default_provider;
    use futures_rustls::rustls::pki_types::ServerName;
    use futures_rustls::rustls::{ClientConfig, RootCertStore};

    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    Ok(Box::pin(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
}

#[cfg(not(feature = "tls"))]
async fn secure(_: String, _: TcpStream) -> io::Result<Pin<Box<dyn Stream>>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The back-off of the clients in the field: 1, 2, 4, 8, 16, 30 s, each ±20 %, so that a restart of
/// the relay does not bring everybody back at the same moment.
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection stood: the next wait is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let seconds = (1_u32 << self.failures.min(5)).min(30);
        self.failures += 1;
        Duration::from_secs(seconds.into()).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}
