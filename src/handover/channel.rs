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
    /// Connections. The mark of each says whether it may be told that the relay ends: it speaks plain TCP, and no
    /// frame is half written.
    Connections,
    /// Nothing: this was all.
    End,
}

const KINDS: [(Parcel, u8); 6] = [
    (Parcel::State, b's'),
    (Parcel::Relay, b'r'),
    (Parcel::Tls, b't'),
    (Parcel::Metrics, b'm'),
    (Parcel::Connections, b'c'),
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
    /// Puts descriptors into the channel, each with its mark. Nobody reads them yet, so it does not wait for room: few
    /// large messages find it, and as many as there are connections would not.
    pub(super) fn send(&self, parcel: Parcel, sockets: &[(Socket, bool)]) -> io::Result<()> {
        for some in sockets.chunks(MOST) {
            self.send_one(parcel, some)?;
        }
        Ok(())
    }

    /// Says that this was all.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.send_one(Parcel::End, &[])
    }

    fn send_one(&self, parcel: Parcel, some: &[(Socket, bool)]) -> io::Result<()> {
        let descriptors: Vec<_> = some.iter().map(|(socket, _)| socket.as_fd()).collect();
        let marks = some.iter().map(|(_, mark)| u8::from(*mark));
        let bytes: Vec<_> = [parcel.byte()].into_iter().chain(marks).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let rights = SendAncillaryMessage::ScmRights(&descriptors);
        if !descriptors.is_empty() && !control.push(rights) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)?;
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

/// Takes the next parcel out of the channel: descriptors with their marks.
pub(super) fn receive(channel: BorrowedFd<'_>) -> io::Result<(Parcel, Vec<(OwnedFd, bool)>)> {
    let mut bytes = [0; 1 + MOST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    let unknown = || io::Error::other("the channel holds something unknown");
    let (kind, marks) = bytes[..received.bytes].split_first().ok_or_else(unknown)?;
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() != marks.len() {
        return Err(io::Error::other(
            "descriptors were lost: the limit is LimitNOFILE=, ulimit -n",
        ));
    }
    let parcel = Parcel::of(*kind).ok_or_else(unknown)?;
    let marks = marks.iter().map(|mark| *mark != 0);
    Ok((parcel, descriptors.into_iter().zip(marks).collect()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn thousands_of_connections_find_room_however_their_marks_alternate() {
        const CONNECTIONS: usize = 6_000;
        let socket: Socket = Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let mark = |number: usize| number % 2 == 0 || number % 7 == 0;
        let sent: Vec<_> =
            (0..CONNECTIONS).map(|number| (Arc::clone(&socket), mark(number))).collect();
        let (sender, receiver) = open().unwrap();
        sender.send(Parcel::Relay, &sent[..1]).unwrap();
        sender.send(Parcel::Tls, &[]).unwrap();
        sender.send(Parcel::Connections, &sent).unwrap();
        sender.finish().unwrap();
        drop(sender);
        let (parcel, listeners) = receive(receiver.as_fd()).unwrap();
        assert_eq!((parcel, listeners.len()), (Parcel::Relay, 1));
        let mut marks = Vec::new();
        loop {
            match receive(receiver.as_fd()).unwrap() {
                (Parcel::Connections, some) => marks.extend(some.into_iter().map(|(_, mark)| mark)),
                (parcel, rest) => break assert_eq!((parcel, rest.len()), (Parcel::End, 0)),
            }
        }
        assert!(marks.into_iter().eq((0..CONNECTIONS).map(mark)));
        assert!(receive(receiver.as_fd()).is_err(), "and nothing follows");
    }
}
