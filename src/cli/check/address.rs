//! Whether the relay could listen on an address, and if not, who does.
//!
//! Nothing here disturbs a running relay: an address is bound and released without listening, and
//! its holder is asked for the health page, as a monitor would ask.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

use serde_json::Value;

use crate::cli::ask;
use crate::cli::ask::Bounds;
use crate::limits::{CHECK_MAX_ANSWER, CHECK_TIMEOUT};
use crate::net::listen;
use crate::net::listen::Listen;

/// Who holds an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Occupancy {
    /// Nobody.
    Free,
    /// Nobody, and no interface has the address yet.
    Absent,
    /// A relay, with its version if it answered.
    Relay(Option<String>),
    /// Another program, with its name and process id where this process may see them.
    Taken(Option<String>),
    /// The address cannot be bound, for this reason.
    Refused(String),
}

/// Finds out. Takes at most [`CHECK_TIMEOUT`], and the time to read the system's tables.
pub fn look(listen: Listen) -> Occupancy {
    match listen::try_out(listen) {
        Ok(()) if is_absent(listen) => Occupancy::Absent,
        Ok(()) => Occupancy::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => occupant(listen),
        Err(error) => Occupancy::Refused(error.to_string()),
    }
}

/// An address that no interface has cannot be bound without the option that allows it.
fn is_absent(listen: Listen) -> bool {
    let Listen::At(address) = listen else { return false };
    let bound = UdpSocket::bind((address.ip(), 0));
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

fn occupant(listen: Listen) -> Occupancy {
    let address = match listen {
        Listen::Everywhere(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Listen::At(address) if address.ip().is_unspecified() => {
            SocketAddr::from((loopback_of(address.ip()), address.port()))
        }
        Listen::At(address) => address,
    };
    if let Some(version) = relay_version(address) {
        return Occupancy::Relay(Some(version));
    }
    // It may be one that answers proxies alone.
    match holder(Path::new("/proc"), address.port()) {
        Some((name, _)) if name == "pyrycode-relay" => Occupancy::Relay(None),
        holder => Occupancy::Taken(holder.map(|(name, pid)| format!("{name}, process {pid}"))),
    }
}

fn loopback_of(unspecified: IpAddr) -> IpAddr {
    match unspecified {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

/// The version on the health page of the relay at `address`, if a relay answers there.
fn relay_version(address: SocketAddr) -> Option<String> {
    let answer = ask::get(address, "/healthz", BOUNDS).ok()?;
    if answer.status == 200 { version(&answer.body) } else { None }
}

fn version(body: &str) -> Option<String> {
    let page: Value = serde_json::from_str(body).ok()?;
    page.get("connected_binaries")?;
    Some(page.get("version")?.as_str()?.to_owned())
}

/// The name and process id of the program that listens on `port`.
fn holder(proc: &Path, port: u16) -> Option<(String, u32)> {
    let sockets: Vec<_> = ["net/tcp", "net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(proc.join(table)).ok())
        .flat_map(|table| listening_on(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = std::fs::read_dir(proc).ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find_map(|pid: u32| {
        let process = proc.join(pid.to_string());
        let mut open = std::fs::read_dir(process.join("fd")).ok()?.flatten();
        let holds = |link: std::path::PathBuf| sockets.iter().any(|name| link == Path::new(name));
        open.any(|entry| std::fs::read_link(entry.path()).is_ok_and(holds)).then_some(())?;
        let name = std::fs::read_to_string(process.join("comm")).ok()?;
        Some((name.trim_end().to_owned(), pid))
    })
}

/// The inodes of the sockets in one of the kernel's tables that listen on `port`.
fn listening_on(table: &str, port: u16) -> Vec<u64> {
    const LISTENING: &str = "0A";
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let inodes = rows.filter_map(|row| {
        let (_, local) = row.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local, 16) == Ok(port) && *row.get(3)? == LISTENING;
        is_it.then(|| row.get(9)?.parse().ok()).flatten()
    });
    inodes.collect()
}

const BOUNDS: Bounds = Bounds { time: CHECK_TIMEOUT, bytes: CHECK_MAX_ANSWER };

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_free_address_and_one_that_is_not_there_are_told_apart() {
        let at = |text: &str| look(Listen::At(text.parse().unwrap()));
        assert_eq!(at("127.0.0.1:0"), Occupancy::Free);
        assert_eq!(at("192.0.2.1:0"), Occupancy::Absent);
        assert_eq!(look(Listen::Everywhere(0)), Occupancy::Free);
    }

    #[test]
    fn who_holds_an_address_and_is_no_relay_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = taken.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"version\":\"1\"}").unwrap();
            drop(stream);
            taken
        });
        let found = look(Listen::At(address));
        drop(server.join().unwrap());
        let Occupancy::Taken(Some(holder)) = found else { panic!("{found:?}") };
        assert!(holder.ends_with(&format!(", process {}", std::process::id())), "{holder}");
    }

    #[test]
    fn only_the_health_page_of_a_relay_is_one() {
        let relay = r#"{"version":"1.2","connected_binaries":0}"#;
        assert_eq!(version(relay), Some("1.2".to_owned()));
        assert_eq!(version(r#"{"version":"1.2"}"#), None);
        assert_eq!(version(r#"{"version":1,"connected_binaries":0}"#), None);
        assert_eq!(version("hello"), None);
        for (status, expected) in [("200 OK", Some("1.2".to_owned())), ("404 No", None)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                write!(stream, "HTTP/1.1 {status}\r\n\r\n{relay}").unwrap();
            });
            assert_eq!(relay_version(address), expected, "{status}");
            server.join().unwrap();
        }
    }

    #[test]
    fn the_kernels_table_is_read_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
             1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n   \
             2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n\
             odd\n";
        assert_eq!(listening_on(table, 8080), [4711]);
        assert_eq!(listening_on(table, 80), [4713]);
        assert!(listening_on(table, 81).is_empty());
    }
}
