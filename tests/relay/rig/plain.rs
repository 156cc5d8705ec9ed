//! What stays plain in a run over TLS: relays that a test starts with one of these reasons, the pages for
//! monitoring, which have no TLS, and sockets of systemd. A bare `--listen` is of a test that is about the option.

/// Why a relay listens without TLS in any run.
#[derive(Clone, Copy, Debug)]
pub enum Plain {
    /// The test has certificates and clients of its own, or is about plain connections beside TLS.
    #[cfg(feature = "tls")]
    ItsOwnTls,
    /// Another program connects, which is given a plain URL.
    ItsOwnClients,
    /// Connections are opened that the relay cannot accept, and their handshakes would wait for it.
    NobodyAccepts,
    /// One address makes more requests than `--rate-limit` leaves it handshakes, and the answers count. What
    /// handshakes cost is with the tests of TLS.
    Answers,
    /// What is told has no word of a certificate; what it has with one is with the tests of TLS.
    NoCertificate,
    /// The program is where it sees no file of this process.
    OtherNamespace,
    /// A PROXY header comes ahead of TLS, and the test has written it and what follows as one.
    ProxyHeader,
    /// The options, addresses and sockets that the relay is given, and how it tells them, are what is tested.
    ItsOwnListeners,
}
