//! Binaries and phones that are connected and know each other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event};
use super::frames::{Frame, Stamp, TEXT, push_frame};
use super::opening::{Kind, NO_SERVER, Opening};
use super::target::Running;

/// Servers with their phones. On the floor every phone has a connection to its binary for itself.
pub struct Fleet {
    pub phones: Vec<Phone>,
    /// The binaries' connections.
    pub binaries: Vec<usize>,
    roles: HashMap<usize, Role>,
    inner: Vec<u8>,
    upgrades: bool,
    port: u16,
}

/// A phone, and the way to it from its binary.
pub struct Phone {
    pub connection: usize,
    /// Its binary's connection.
    pub binary: usize,
    server: String,
    /// The envelope up to the frame.
    envelope: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Binary,
    Phone,
}

impl Fleet {
    /// Connects `servers` binaries with `phones_each` phones, and lets every phone say a first
    /// word, so that its binary knows it.
    pub fn connect(
        driver: &mut Driver,
        running: &Running,
        servers: usize,
        phones_each: usize,
    ) -> io::Result<Self> {
        let mut fleet = Self::new(running.upgrades);
        fleet.grow(driver, running, "server", servers, phones_each)?;
        fleet.introduce(driver)?;
        Ok(fleet)
    }

    /// Phones whose binaries are at the other end of their own connections.
    pub fn direct(driver: &mut Driver, phones: usize) -> io::Result<Self> {
        let mut fleet = Self::new(false);
        for _ in 0..phones {
            let (connection, binary) = driver.connect_to_itself()?;
            fleet.add(connection, binary, "");
        }
        Ok(fleet)
    }

    /// Nobody yet.
    pub fn new(upgrades: bool) -> Self {
        Self {
            phones: Vec::new(),
            binaries: Vec::new(),
            roles: HashMap::new(),
            inner: Vec::new(),
            upgrades,
            port: 0,
        }
    }

    /// Connects more servers, whose ids begin with `prefix`, and says nothing.
    pub fn grow(
        &mut self,
        driver: &mut Driver,
        running: &Running,
        prefix: &str,
        servers: usize,
        phones_each: usize,
    ) -> io::Result<()> {
        self.port = running.port;
        let mut opening = Opening::new(running.port);
        if self.upgrades {
            let name = |server| format!("{prefix}-{server}");
            for server in 0..servers {
                opening.dial(driver, binary_head(&name(server)).as_bytes(), Kind::Binary)?;
            }
            let binaries = opening.finish(driver)?;
            let mut opening = Opening::new(running.port);
            for phone in 0..servers * phones_each {
                let head = phone_head(&name(phone / phones_each));
                opening.dial(driver, head.as_bytes(), Kind::Phone)?;
            }
            let phones = opening.finish(driver)?;
            let ended = [binaries.ended, phones.ended].concat();
            for (phone, connection) in phones.connections.into_iter().enumerate() {
                let server = phone / phones_each;
                self.add(connection, binaries.connections[server], &name(server));
            }
            self.binaries.extend(binaries.connections);
            if ended.iter().any(|connection| self.roles.contains_key(connection)) {
                return Err(io::Error::other("a connection ended while others were opened"));
            }
        } else {
            for phone in 0..servers * phones_each {
                let hello = ((self.phones.len() + phone) as u64).to_be_bytes();
                opening.dial(driver, &hello, Kind::Plain)?;
                opening.dial(driver, &hello, Kind::Plain)?;
            }
            let opened = opening.finish(driver)?;
            for pair in opened.connections.chunks_exact(2) {
                self.binaries.push(pair[0]);
                self.add(pair[1], pair[0], "");
            }
        }
        Ok(())
    }

    fn add(&mut self, connection: usize, binary: usize, server: &str) {
        self.roles.insert(connection, Role::Phone);
        self.roles.insert(binary, Role::Binary);
        let server = server.to_owned();
        self.phones.push(Phone { connection, binary, server, envelope: Vec::new() });
    }

    /// Every phone says a word, so that its binary knows it.
    pub fn introduce(&mut self, driver: &mut Driver) -> io::Result<()> {
        self.speak(driver, 0..self.phones.len(), HELLO_SIZE)
    }

    /// Some phones send a message of `size` bytes, and their binaries learn how to answer. A phone
    /// that is closed meanwhile as one without a server dials again and says it once more.
    pub fn speak(
        &mut self,
        driver: &mut Driver,
        phones: Range<usize>,
        size: usize,
    ) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut speaking: BTreeSet<usize> = phones.collect();
        while !speaking.is_empty() {
            let mut wire = Vec::new();
            for phone in speaking.iter().copied() {
                wire.clear();
                self.push_to_binary(&mut wire, phone, 0, driver.now(), size);
                driver.send(self.phones[phone].connection, &wire);
            }
            let silent = RefCell::new(std::mem::take(&mut speaking));
            let refused = RefCell::new(BTreeSet::new());
            let lost = Cell::new(None);
            driver.until(
                "a message of every phone",
                deadline.saturating_duration_since(Instant::now()),
                &mut |_, connection, event| match event {
                    Event::Text(frame) => {
                        let Some(stamp) = self.stamp(connection, &frame) else { return };
                        let phone = stamp.phone as usize;
                        if self.upgrades {
                            self.phones[phone].envelope = envelope_head(frame.plain());
                        }
                        silent.borrow_mut().remove(&phone);
                    }
                    Event::Closed(NO_SERVER) if self.is_phone(connection) => {
                        refused.borrow_mut().extend(self.phone_at(connection));
                    }
                    Event::Closed(code) if self.has(connection) => {
                        lost.set(Some(code));
                    }
                    Event::Gone(status) if self.has(connection) => {
                        let known = self.phone_at(connection);
                        if known.is_none_or(|phone| !refused.borrow().contains(&phone)) {
                            lost.set(lost.get().or(Some(status)));
                        }
                    }
                    _ => {}
                },
                // Those who dial again have the driver to themselves: nothing else is on its way.
                &mut |_| lost.get().is_some() || silent.borrow().is_subset(&refused.borrow()),
            )?;
            match lost.get() {
                Some(0) => return Err(io::Error::other("a connection ended")),
                Some(code) => {
                    return Err(io::Error::other(format!("a connection was closed with {code}")));
                }
                None => speaking = refused.take(),
            }
            self.dial_again(driver, &speaking)?;
        }
        Ok(())
    }

    /// Dials for phones that were closed as phones without a server.
    fn dial_again(&mut self, driver: &mut Driver, phones: &BTreeSet<usize>) -> io::Result<()> {
        let mut opening = Opening::new(self.port);
        for phone in phones {
            opening.dial_again(phone_head(&self.phones[*phone].server).as_bytes());
        }
        let opened = opening.finish(driver)?;
        for (phone, connection) in phones.iter().zip(opened.connections) {
            let old = std::mem::replace(&mut self.phones[*phone].connection, connection);
            self.roles.remove(&old);
            self.roles.insert(connection, Role::Phone);
        }
        Ok(())
    }

    fn phone_at(&self, connection: usize) -> Option<usize> {
        self.phones.iter().position(|phone| phone.connection == connection)
    }

    /// Appends a frame of a phone; `size` is that of the message inside.
    pub fn push_to_binary(
        &mut self,
        wire: &mut Vec<u8>,
        phone: usize,
        sequence: u32,
        now: u64,
        size: usize,
    ) {
        let number = u32::try_from(phone).unwrap();
        Stamp { phone: number, sequence, sent: now }.write(&mut self.inner, size);
        push_frame(wire, TEXT, &[&self.inner]);
    }

    /// Appends a frame of a binary to a phone; `size` is that of the message inside.
    pub fn push_to_phone(
        &mut self,
        wire: &mut Vec<u8>,
        phone: usize,
        sequence: u32,
        now: u64,
        size: usize,
    ) {
        let number = u32::try_from(phone).unwrap();
        Stamp { phone: number, sequence, sent: now }.write(&mut self.inner, size);
        if self.upgrades {
            let envelope = &self.phones[phone].envelope;
            push_frame(wire, TEXT, &[envelope, &self.inner, b"}"]);
        } else {
            push_frame(wire, TEXT, &[&self.inner]);
        }
    }

    /// The stamp of a message that arrived on one of these connections.
    pub fn stamp(&self, connection: usize, frame: &Frame<'_>) -> Option<Stamp> {
        let start = match self.roles.get(&connection)? {
            Role::Binary if self.upgrades => frame.inner_start()?,
            _ => 0,
        };
        Stamp::read(frame, start)
    }

    /// Whether this is a connection of one of them.
    pub fn has(&self, connection: usize) -> bool {
        self.roles.contains_key(&connection)
    }

    /// Whether this is the connection of a phone.
    pub fn is_phone(&self, connection: usize) -> bool {
        self.roles.get(&connection) == Some(&Role::Phone)
    }
}

/// The request head of a binary.
pub fn binary_head(id: &str) -> String {
    format!(
        "GET /v1/server HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
         X-Pyrycode-Version: 1.0.0\r\nUser-Agent: relay-bench\r\n\r\n"
    )
}

/// The request head of a phone.
pub fn phone_head(id: &str) -> String {
    format!(
        "GET /v1/client HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Server: {id}\r\n\
         X-Pyrycode-Token: token\r\nX-Pyrycode-Device-Name: bench\r\nUser-Agent: relay-bench\r\n\r\n"
    )
}

/// What the binary writes in front of a frame for the phone that this envelope came from.
pub fn envelope_head(envelope: &[u8]) -> Vec<u8> {
    let envelope: serde_json::Value =
        serde_json::from_slice(envelope).expect("a relay writes JSON envelopes");
    format!("{{\"conn_id\":{},\"frame\":", envelope["conn_id"]).into_bytes()
}

const UPGRADE: &str = "Host: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const HELLO_SIZE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);
