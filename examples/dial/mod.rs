//! What both example clients share: dialling the relay, and how long to wait before trying again.

use std::time::Duration;

use async_net::TcpStream;
use async_tungstenite::tungstenite::http::Uri;
use async_tungstenite::tungstenite::{ClientRequestBuilder, Error};
use async_tungstenite::{WebSocketStream, client_async};

/// Where to dial: the relay's URL and the server-id, from the command line.
pub(crate) struct Target {
    /// For example `ws://127.0.0.1:8080`.
    pub(crate) relay: String,
    /// The server-id that the binary claims and the phone asks for.
    pub(crate) server_id: String,
}

impl Target {
    /// Takes `[RELAY-URL] [SERVER-ID]` from the command line.
    pub(crate) fn from_arguments() -> Self {
        let mut arguments = std::env::args().skip(1);
        Self {
            relay: arguments.next().unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned()),
            server_id: arguments.next().unwrap_or_else(|| "demo".to_owned()),
        }
    }

    /// Dials `path` with the headers that it requires.
    pub(crate) async fn dial(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<WebSocketStream<TcpStream>, Error> {
        let uri: Uri = format!("{}{path}", self.relay).parse()?;
        let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
        stream.set_nodelay(true)?;
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
