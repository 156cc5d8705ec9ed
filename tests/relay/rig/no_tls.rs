//! In the place of `secure.rs` where the program has no TLS: there is no run over it.

use std::io;
use std::net::TcpStream;
use std::pin::Pin;

use smol::Async;

use super::stream::Duplex;

/// None.
pub enum Session {}

pub async fn secured(_tcp: Async<TcpStream>) -> io::Result<Pin<Box<dyn Duplex>>> {
    panic!("this program has no TLS")
}

/// None either.
pub fn options() -> &'static [&'static str] {
    &[]
}

pub fn front() -> Option<&'static [&'static str]> {
    None
}

impl Session {
    pub fn meet(_tcp: &TcpStream) -> Self {
        panic!("this program has no TLS")
    }

    pub fn read(&mut self, _tcp: &TcpStream, _buffer: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }

    pub fn write(&mut self, _tcp: &TcpStream, _bytes: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    pub fn flush(&mut self, _tcp: &TcpStream) -> io::Result<()> {
        match *self {}
    }

    pub fn close(&mut self, _tcp: &TcpStream) -> io::Result<()> {
        match *self {}
    }
}
