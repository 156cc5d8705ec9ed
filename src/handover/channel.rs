//! The channel to the new program: parcels of descriptors, each with a byte that says what they are.
//!
//! This stays as it is whatever becomes of the format of the state: a program that cannot read the state still has to
//! listen, and to tell everybody that the relay ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use super::Socket;

/// What a parcel holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parcel {
    /// The memory file with the state.
    State,
    /// Listening sockets for binaries and phones.
    Relay,
    /// Listening sockets for the same over TLS.
    Tls,
    /// Listening sockets for the metrics.
    Metrics,
    /// Connections over plain TCP to which nothing is half written.
    Connection,
    /// Other connections.
    Unfinished,
    /// Nothing: this was all.
    End,
}

const KINDS: [(Parcel, u8); 7] = [
    (Parcel::State, b's'),
    (Parcel::Relay, b'r'),
    (Parcel::Tls, b't'),
    (Parcel::Metrics, b'm'),
    (Parcel::Connection, b'c'),
    (Parcel::Unfinished, b'u'),
    (Parcel::End, b'e'),
];

impl Parcel {
    fn byte(self) -> u8 {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, byte)| *byte)
    }

    fn of(byte: u8) -> Option<Self> {
        KINDS.iter().find(|(_, known)| *known == byte).map(|(kind, _)| *kind)
    }
}

/// Descriptors in one message: the kernel takes 253.
const MOST: usize = 200;
/// Room for the messages that wait until the new program reads them, in bytes: what the kernel grants of it is enough
/// for 50,000 descriptors.
const ROOM: usize = 1 << 20;

/// The end into which the parcels are put.
#[derive(Debug)]
pub(super) struct Sender(OwnedFd);

/// A channel, and the end that the new program reads.
pub(super) fn open() -> io::Result<(Sender, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (sender, receiver) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
    // What the kernel does not grant shows itself when a message finds no room.
    let _ = set_socket_send_buffer_size(&sender, ROOM);
    Ok((Sender(sender), receiver))
}

impl Sender {
    /// Puts descriptors into the channel. Nobody reads them yet, so it does not wait for room.
    pub(super) fn send(&self, parcel: Parcel, sockets: &[Socket]) -> io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
        let byte = [parcel.byte()];
        if sockets.is_empty() && parcel != Parcel::End {
            return Ok(());
        }
        for some in sockets.chunks(MOST).chain((sockets.is_empty()).then_some(&[][..])) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !some.is_empty() && !control.push(SendAncillaryMessage::ScmRights(some)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            sendmsg(&self.0, &[IoSlice::new(&byte)], &mut control, flags)?;
        }
        Ok(())
    }

    /// The descriptor itself, for who waits for an answer.
    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.0
    }
}

/// Puts nothing in the place of standard input, where nobody should find a channel; what is in it is gone.
pub(super) fn discard_stdin() {
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(nothing) = nothing {
        let _ = rustix::stdio::dup2_stdin(nothing);
    }
}

/// Takes the next parcel out of the channel.
pub(super) fn receive(channel: BorrowedFd<'_>) -> io::Result<(Parcel, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let parcel = Parcel::of(byte[0]).filter(|_| received.bytes == 1);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "descriptors were lost: the limit is LimitNOFILE=, ulimit -n",
        ));
    }
    let parcel = parcel.ok_or_else(|| io::Error::other("the channel holds something unknown"))?;
    Ok((parcel, descriptors))
}
