//! Addresses to listen on, and the sockets that are opened there.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use log::info;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::limits::{LISTEN_BACKLOG, RECEIVE_BUFFER};

/// An address to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    /// Every interface, both families where the kernel has both.
    Everywhere(u16),
    /// This address.
    At(SocketAddr),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere(port) => write!(f, ":{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

/// Parses `ADDRESS:PORT` or `:PORT`. Names are not looked up: that would take a resolver thread. The
/// error is a sentence for the operator.
pub(crate) fn parse_listen(text: &str) -> Result<Listen, String> {
    let port = |digits: &str| {
        digits.parse::<u16>().map_err(|_| format!("{digits:?} is no port (0 to 65535)"))
    };
    if let Some(digits) = text.strip_prefix(':') {
        return port(digits).map(Listen::Everywhere);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen::At(address));
    }
    Err(match text.rsplit_once(':') {
        Some(("localhost", digits)) if port(digits).is_ok() => {
            format!("names are not looked up: use 127.0.0.1:{digits} or [::1]:{digits}")
        }
        _ if text.parse::<std::net::IpAddr>().is_ok() => {
            "the port is missing: write 192.0.2.1:8080 or [2001:db8::1]:8080".to_owned()
        }
        _ if text.parse::<u16>().is_ok() => format!("write :{text} to listen on every interface"),
        _ => {
            "write an IP address and a port, such as 127.0.0.1:8080, [::1]:8080 or :8080".to_owned()
        }
    })
}

/// Opens a listening socket. An address that the machine does not have yet is bound all the same
/// (free bind); `:port` falls back to IPv4 alone where the kernel has no IPv6.
pub fn open(listen: Listen) -> io::Result<TcpListener> {
    let socket = bound(listen)?;
    bound_receiving(&socket)?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Bounds what the kernel receives for a connection, or for all connections that are made to a
/// listening socket from now on: the window that they announce is chosen by the listening socket.
pub(crate) fn bound_receiving<'s, S>(socket: &'s S) -> io::Result<()>
where
    SockRef<'s>: From<&'s S>,
{
    SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER)
}

/// Whether [`open`] would succeed now. Nobody can connect to what is bound for that moment, and
/// nobody who wants the address meanwhile is kept from it.
pub(crate) fn try_out(listen: Listen) -> io::Result<()> {
    bound(listen).map(drop)
}

fn bound(listen: Listen) -> io::Result<Socket> {
    match listen {
        Listen::At(address) => bind(address, true),
        Listen::Everywhere(port) => {
            let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            match bind(both, false) {
                Err(error) if lacks_ipv6(&error) => {
                    info!(port = port; "listening on IPv4 alone: this kernel has no IPv6");
                    bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), true)
                }
                other => other,
            }
        }
    }
}

fn bind(address: SocketAddr, only_own_family: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_own_family)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// EAFNOSUPPORT, or EADDRNOTAVAIL where IPv6 is compiled in and switched off.
fn lacks_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}
