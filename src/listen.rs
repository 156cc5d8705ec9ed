//! Opens the listening sockets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use log::info;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Listen;
use crate::limits::LISTEN_BACKLOG;

/// Opens a listening socket. An address that the machine does not have yet is bound all the same
/// (free bind); `:port` falls back to IPv4 alone where the kernel has no IPv6.
pub fn open(listen: Listen) -> io::Result<TcpListener> {
    let socket = bound(listen)?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Whether [`open`] would succeed now. Nobody can connect to what is bound for that moment, and
/// nobody who wants the address meanwhile is kept from it.
pub fn try_out(listen: Listen) -> io::Result<()> {
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
