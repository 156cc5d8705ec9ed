//! Binaries and phones that are connected and know each other.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::driver::{Driver, Event};
use super::frames::{Frame, Stamp, TEXT, push_frame};
use super::target::Running;

/// Servers with their phones. On the floor every phone has a connection to its binary for itself.
pub struct Fleet {
    pub phones: Vec<Phone>,
    /// The binaries' connections.
    pub binaries: Vec<usize>,
    roles: HashMap<usize, Role>,
    inner: Vec<u8>,
    upgrades: bool,
}

/// A phone, and the way to it from its binary.
pub struct Phone {
    pub connection: usize,
    /// Its binary's connection.
    pub binary: usize,
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
            fleet.add(connection, binary);
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
        let mut opening = Opening::default();
        if self.upgrades {
            let mut binaries = Vec::new();
            for server in 0..servers {
                let head = binary_head(&format!("{prefix}-{server}"));
                binaries.push(opening.dial(driver, running.port, head.as_bytes(), true)?);
            }
            opening.finish(driver)?;
            for phone in 0..servers * phones_each {
                let server = phone / phones_each;
                let head = phone_head(&format!("{prefix}-{server}"));
                let connection = opening.dial(driver, running.port, head.as_bytes(), true)?;
                self.add(connection, binaries[server]);
            }
            self.binaries.extend(binaries);
        } else {
            for _ in 0..servers * phones_each {
                let hello = (self.phones.len() as u64).to_be_bytes();
                let binary = opening.dial(driver, running.port, &hello, false)?;
                let connection = opening.dial(driver, running.port, &hello, false)?;
                self.binaries.push(binary);
                self.add(connection, binary);
            }
        }
        opening.finish(driver)
    }

    fn add(&mut self, connection: usize, binary: usize) {
        self.roles.insert(connection, Role::Phone);
        self.roles.insert(binary, Role::Binary);
        self.phones.push(Phone { connection, binary, envelope: Vec::new() });
    }

    /// Every phone says a word, so that its binary knows it.
    pub fn introduce(&mut self, driver: &mut Driver) -> io::Result<()> {
        self.speak(driver, 0..self.phones.len(), HELLO_SIZE)
    }

    /// Some phones send a message of `size` bytes, and their binaries learn how to answer.
    pub fn speak(
        &mut self,
        driver: &mut Driver,
        phones: Range<usize>,
        size: usize,
    ) -> io::Result<()> {
        let unknown = Cell::new(phones.len());
        let mut wire = Vec::new();
        for phone in phones {
            wire.clear();
            self.push_to_binary(&mut wire, phone, 0, driver.now(), size);
            driver.send(self.phones[phone].connection, &wire);
        }
        let mut lost = None;
        driver.until(
            "a message of every phone",
            PATIENCE,
            &mut |_, connection, event| match event {
                Event::Text(frame) => {
                    let Some(stamp) = self.stamp(connection, &frame) else { return };
                    if self.upgrades {
                        self.phones[stamp.phone as usize].envelope = envelope_head(frame.plain());
                    }
                    unknown.set(unknown.get() - 1);
                }
                Event::Closed(code) => lost = Some(code),
                _ => {}
            },
            &mut |_| unknown.get() == 0,
        )?;
        match lost {
            Some(code) => Err(io::Error::other(format!("a connection was closed with {code}"))),
            None => Ok(()),
        }
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

    /// Whether this is the connection of a phone.
    pub fn is_phone(&self, connection: usize) -> bool {
        self.roles.get(&connection) == Some(&Role::Phone)
    }
}

/// Dials with a bounded number of upgrades in progress: a relay keeps few request heads.
#[derive(Default)]
struct Opening {
    dialed: usize,
    opened: usize,
    refused: Option<u16>,
}

impl Opening {
    fn dial(
        &mut self,
        driver: &mut Driver,
        port: u16,
        hello: &[u8],
        upgrade: bool,
    ) -> io::Result<usize> {
        let number = driver.dial(port, hello, upgrade)?;
        if upgrade {
            self.dialed += 1;
            self.wait(driver, IN_PROGRESS)?;
        }
        Ok(number)
    }

    fn finish(&mut self, driver: &mut Driver) -> io::Result<()> {
        self.wait(driver, 0)
    }

    /// Waits until at most `in_progress` upgrades are.
    fn wait(&mut self, driver: &mut Driver, in_progress: usize) -> io::Result<()> {
        let state = RefCell::new(self);
        let refused = || state.borrow().refused;
        driver.until(
            "an upgrade",
            PATIENCE,
            &mut |_, _, event| match event {
                Event::Open => state.borrow_mut().opened += 1,
                Event::Gone(status) => state.borrow_mut().refused = Some(status),
                _ => {}
            },
            &mut |_| {
                let state = state.borrow();
                state.refused.is_some() || state.dialed - state.opened <= in_progress
            },
        )?;
        match refused() {
            Some(status) => Err(io::Error::other(format!("an upgrade was refused with {status}"))),
            None => Ok(()),
        }
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
const IN_PROGRESS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);
