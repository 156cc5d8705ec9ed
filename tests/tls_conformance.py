#!/usr/bin/env python3
"""Goes through the TLS part of docs/conformance.md: what RFC 8446 and RFC 5246 ask of records.

    tests/tls_conformance.py RELAY         runs every conversation
    tests/tls_conformance.py --table       prints the table for the document

RELAY is the program. The client is tlslite-ng, a TLS stack in Python that shares no code with the relay.
It shakes hands; then its keys seal records one by one, however wrong they are. A conversation is a case
in one version of TLS, with one cipher, and at one time: before the request, or over a WebSocket. One line
is printed per conversation; all are run, and one that fails fails the run. TLS_CONFORMANCE_ONLY is the
beginning of the numbers of those to run. Installs its packages below target/ of the tree if they are not
there; needs python3 with pip, and openssl.
"""

import contextlib
import json
import multiprocessing
import os
import secrets
import socket
import struct
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from conformance import ROOT, documented, expect, frame, head
from rig import Failed
from tls import NAME, Site

PYTHON = os.path.join(ROOT, "target", "tls-conformance", "python")
DEADLINE = 20.0
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
CLIENT_HELLO, SERVER_HELLO, NEW_SESSION_TICKET, FINISHED, KEY_UPDATE = 1, 2, 4, 20, 24
WARNING, FATAL = 1, 2
CLOSE_NOTIFY, INTERNAL_ERROR, USER_CANCELED = 0, 80, 90
# The largest plaintext of a record.
FRAGMENT = 1 << 14
END = ("end",)
PONG, PING = 0xA, 0x9
TLS12, TLS13 = (3, 3), (3, 4)
VERSIONS = {TLS13: "TLS 1.3", TLS12: "TLS 1.2"}
CIPHERS = {"AES-128-GCM": "aes128gcm", "AES-256-GCM": "aes256gcm",
           "ChaCha20-Poly1305": "chacha20-poly1305"}
TIMES = ("request", "WebSocket")


# --- the client ----------------------------------------------------------------------------------------

def settings(version, cipher=None):
    from tlslite.api import HandshakeSettings
    made = HandshakeSettings()
    made.minVersion, made.maxVersion, made.versions = version, version, [version]
    made.cipherNames = [cipher] if cipher else list(CIPHERS.values())
    made.eccCurves, made.keyShares, made.dhGroups = ["x25519", "secp256r1"], ["x25519"], []
    made.use_heartbeat_extension = False
    return made


class Wire:
    """A socket that sends what `rewrite` makes of the first flight, in these pieces."""

    def __init__(self, tcp, rewrite=None):
        self.tcp, self.rewrite, self.first = tcp, rewrite, None

    def sendall(self, data):
        pieces = [bytes(data)]
        if self.first is None:
            self.first = bytes(data)
            pieces = self.rewrite(self.first) if self.rewrite else pieces
        for piece in pieces:
            self.tcp.sendall(piece)

    def send(self, data):
        self.sendall(data)
        return len(data)

    def __getattr__(self, name):
        return getattr(self.tcp, name)


def connect(site):
    tcp = socket.create_connection(site.tls, DEADLINE)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp


class Client:
    """A client whose handshake is done."""

    def __init__(self, site, version, cipher, when="request", made=None, session=None, rewrite=None,
                 finished=None):
        from tlslite.api import TLSConnection
        self.site, self.version, self.when = site, version, when
        self.tcp = connect(site)
        self.wire = Wire(self.tcp, rewrite)
        self.tls = TLSConnection(self.wire)
        self.layer = self.tls._recordLayer
        self.pending, self.tickets = [], 0
        if finished:
            self.change_finished(finished)
        self.tls.handshakeClientCert(session=session, settings=made or settings(version, cipher),
                                     serverName=NAME, alpn=[b"http/1.1"])
        expect(self.tls.version, version)
        self.words = f"GET /healthz HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
        if when == "WebSocket":
            self.send(DATA, head(None, "binary", f"tls-{secrets.token_hex(8)}", host=NAME))
            expect(self.data(until=b"\r\n\r\n").split(b"\r\n")[0], b"HTTP/1.1 101 Switching Protocols")
            self.words = frame(PING, b"comes through")

    def change_finished(self, change):
        """Has `change(client, message)` send the record that holds Finished."""
        send = self.layer.sendRecord

        def changed(message):
            content = bytes(message.write())
            if message.contentType == HANDSHAKE and content[0] == FINISHED:
                # What goes before it waits to be sent with it.
                self.tls.sock.flush()
                change(self, content)
                return iter(())
            return send(message)

        self.layer.sendRecord = changed

    # --- sending

    def payload(self, kind, content, padding=0):
        """The payload of the next record."""
        content = bytearray(content)
        if self.version == TLS13:
            return bytes(self.layer._encryptThenSeal(content + bytes([kind]) + bytes(padding), DATA))
        return bytes(self.layer._encryptThenSeal(content, kind))

    def record(self, kind, content, padding=0):
        """The next record."""
        payload = self.payload(kind, content, padding)
        return record(DATA if self.version == TLS13 else kind, payload)

    def send(self, kind, content, padding=0):
        self.tcp.sendall(self.record(kind, content, padding))

    def send_words(self):
        self.send(DATA, self.words)

    def update_keys(self):
        """From now on the client seals with the next keys."""
        session = self.tls.session
        session.cl_app_secret, session.sr_app_secret = self.layer.calcTLS1_3KeyUpdate_reciever(
            session.cipherSuite, session.cl_app_secret, session.sr_app_secret)

    def key_update(self, asks=False):
        """Updates the keys; returns the record that says so."""
        made = self.record(HANDSHAKE, key_update(int(asks)))
        self.update_keys()
        return made

    # --- receiving

    def next(self):
        """What comes next, tickets aside."""
        from tlslite.errors import TLSAbruptCloseError
        while not self.pending:
            try:
                # The socket blocks: the first that comes is the record.
                got = next(self.layer.recvRecord())
            except TLSAbruptCloseError:
                return END
            except ConnectionError:
                return ("reset",)
            kind, content = got[0].type, bytes(got[1].bytes)
            if kind == DATA:
                self.pending.append(("data", content))
            elif kind == ALERT and len(content) == 2:
                self.pending.append(alert(content))
            elif kind == HANDSHAKE:
                self.take_messages(content)
            else:
                raise Failed(f"a record of type {kind}: {content!r}")
        return self.pending.pop(0)

    def take_messages(self, content):
        while content:
            kind, length = content[0], int.from_bytes(content[1:4], "big")
            message, content = content[4:4 + length], content[4 + length:]
            if kind == NEW_SESSION_TICKET:
                self.tickets += 1
            elif kind == KEY_UPDATE and not content:
                session = self.tls.session
                session.cl_app_secret, session.sr_app_secret = self.layer.calcTLS1_3KeyUpdate_sender(
                    session.cipherSuite, session.cl_app_secret, session.sr_app_secret)
                self.pending.append(("key update", message[0]))
            else:
                raise Failed(f"a handshake message of type {kind}")

    def data(self, until):
        seen = b""
        while until not in seen:
            got = self.next()
            if got[0] != "data":
                raise Failed(f"{got} instead of data, after {seen[-100:]!r}")
            seen += got[1]
        return seen

    def answered(self):
        """The words came through; the connection lives, or ends in order."""
        if self.when == "WebSocket":
            answer = self.data(until=b"comes through")
            expect(answer, frame(PONG, b"comes through", masked=False))
            return
        answer = self.data(until=b"}")
        expect(answer.split(b"\r\n")[0], b"HTTP/1.1 200 OK")
        expect(json.loads(answer.split(b"\r\n\r\n")[1])["status"], "ok")
        self.ended_in_order()

    def goes_on(self):
        self.send_words()
        self.answered()

    def ended_in_order(self):
        expect(self.next(), ("alert", "warning", "close_notify"))
        self.ended()

    def ended(self):
        got = self.next()
        if got not in (END, ("reset",)):
            raise Failed(f"{got} instead of the end")

    def refused(self, name):
        expect(self.next(), ("alert", "fatal", name))
        self.ended()

    def drop(self):
        self.tcp.close()


def record(kind, payload, version=0x0303):
    return struct.pack("!BHH", kind, version, len(payload)) + payload


def message(kind, body):
    return struct.pack("!I", kind << 24 | len(body)) + body


def key_update(request):
    return message(KEY_UPDATE, bytes([request]))


def alert(content):
    from tlslite.constants import AlertDescription
    level = {WARNING: "warning", FATAL: "fatal"}.get(content[0], content[0])
    return ("alert", level, AlertDescription.toStr(content[1]))


# --- the cases -----------------------------------------------------------------------------------------

CASES = []


class Case:
    """`tls13` and `tls12` are sections of RFC 8446 and RFC 5246; None if it is not for that version."""

    def __init__(self, number, sent, must, tls13, tls12, run, times=TIMES, ciphers=CIPHERS):
        self.number, self.sent, self.must, self.tls13, self.tls12 = number, sent, must, tls13, tls12
        self.run, self.times, self.ciphers = run, times, ciphers
        CASES.append(self)

    def row(self):
        ciphers = "all" if self.ciphers is CIPHERS else ", ".join(self.ciphers)
        return (f"| {self.number} | {self.sent} | {self.must} | {self.tls13 or '–'} | {self.tls12 or '–'} "
                f"| {ciphers} | {', '.join(self.times)} |")

    def conversations(self):
        for version, section in ((TLS13, self.tls13), (TLS12, self.tls12)):
            if section:
                for cipher in self.ciphers:
                    for when in self.times:
                        yield self, version, cipher, when

    def hold(self, site, version, cipher, when):
        client = Client(site, version, CIPHERS[cipher], when)
        try:
            self.run(client)
        finally:
            client.drop()


class Handshake(Case):
    """A case that shakes hands itself: `run(site, version, cipher)`, which is any."""

    def __init__(self, number, sent, must, tls13, tls12, run, ciphers=("any",)):
        super().__init__(number, sent, must, tls13, tls12, run, ("handshake",), ciphers)

    def hold(self, site, version, cipher, when):
        self.run(site, version, CIPHERS.get(cipher))


def passes(build):
    """What `build` makes of the client is sent at once; then data comes through."""
    def run(client):
        client.tcp.sendall(build(client))
        client.goes_on()
    return run


def carried(build):
    """What `build` makes of the client has the words, which come through."""
    def run(client):
        client.tcp.sendall(build(client))
        client.answered()
    return run


def refuses(name, build):
    """What `build` makes of the client ends in this fatal alert, and nothing after it."""
    def run(client):
        client.tcp.sendall(build(client))
        client.refused(name)
    return run


def both(first, second):
    return lambda client: first(client) + second(client)


def sealed(kind, content, padding=0):
    return lambda client: client.record(kind, content, padding)


def words(client):
    return client.record(DATA, client.words)


def cut(client, size):
    return b"".join(client.record(DATA, client.words[at:at + size])
                    for at in range(0, len(client.words), size))


def bytewise(client):
    whole = words(client)
    for at in range(len(whole)):
        client.tcp.sendall(whole[at:at + 1])
    client.answered()


def altered(change):
    def build(client):
        whole = bytearray(words(client))
        change(whole)
        return bytes(whole)
    return build


def flip(at):
    def change(whole):
        whole[at] ^= 1
    return change


def skipped(client):
    words(client)
    return words(client)


def twice(client):
    whole = client.record(DATA, b"")
    return whole + whole


def full(client):
    """A record of the largest size, in which something is answered."""
    if client.when == "WebSocket":
        # Pongs that nobody asked for.
        size = FRAGMENT - len(client.words)
        filler = frame(PONG, bytes(size % 131 + 125 - 6 if size % 131 < 6 else size % 131 - 6))
        filler += frame(PONG, bytes(125)) * ((size - len(filler)) // 131)
        return client.record(DATA, filler + client.words)
    # A head is shorter than that; what follows it is not looked at.
    return client.record(DATA, client.words + bytes(FRAGMENT - len(client.words)))


def oversized(length):
    """The header alone of a record with this payload."""
    return lambda client: record(DATA, bytes(length))[:5]


def own_nonce(client):
    """The explicit nonce of AES-GCM need not be the sequence number."""
    state, layer = client.layer._writeState, client.layer
    explicit = secrets.token_bytes(8)
    aad = struct.pack("!QBHH", state.seqnum, DATA, 0x0303, len(client.words))
    nonce = bytearray(bytes(state.fixedNonce) + explicit)
    content = layer._writeState.encContext.seal(nonce, bytearray(client.words), bytearray(aad))
    state.seqnum += 1
    return record(DATA, explicit + bytes(content))


def updates(count, asks=False):
    return lambda client: b"".join(client.key_update(asks) for _ in range(count))


def asked_for_keys(count):
    def run(client):
        client.tcp.sendall(updates(count, True)(client) + words(client))
        expect(client.next(), ("key update", 0))
        client.answered()
    return run


def update_in_pieces(*sizes):
    def build(client):
        whole, made = key_update(0), b""
        for size in sizes:
            made += client.record(HANDSHAKE, whole[:size])
            whole = whole[size:]
        client.update_keys()
        return made
    return build


def keys_and_data_by_turns(client):
    for asks in (True, False) * 10:
        client.tcp.sendall(client.key_update(asks))
        client.send(DATA, frame(PING, b"comes through"))
        if asks:
            expect(client.next(), ("key update", 0))
        client.answered()


def half_an_update(client):
    return client.record(HANDSHAKE, key_update(0)[:3])


def renegotiation(client):
    return client.record(HANDSHAKE, client.wire.first[5:])


def declined(build):
    def run(client):
        client.tcp.sendall(build(client))
        expect(client.next(), ("alert", "warning", "no_renegotiation"))
        client.goes_on()
    return run


def declined_once(client):
    client.tcp.sendall(renegotiation(client))
    expect(client.next(), ("alert", "warning", "no_renegotiation"))
    client.tcp.sendall(renegotiation(client))
    client.refused("unexpected_message")


def hello_in_pieces(client):
    hello = client.wire.first[5:]
    return b"".join(client.record(HANDSHAKE, hello[at:at + 50]) for at in range(0, len(hello), 50))


def said(level, description):
    return sealed(ALERT, bytes([level, description]))


def ends(build):
    """What `build` makes of the client ends the connection without an alert."""
    def run(client):
        client.tcp.sendall(build(client))
        client.ended()
    return run


def is_an_error(client):
    client.send(ALERT, bytes([WARNING, INTERNAL_ERROR]))
    got = client.next()
    if got != END:
        expect(got, fatal("decode_error"))
        client.ended()


def closes(build):
    """What `build` makes of the client ends the connection in order."""
    def run(client):
        client.tcp.sendall(build(client))
        client.ended_in_order()
    return run


def request_then_close(client):
    client.tcp.sendall(words(client) + said(WARNING, CLOSE_NOTIFY)(client))
    client.answered()


def cut_off(client):
    client.tcp.sendall(words(client)[:-1])
    client.tcp.shutdown(socket.SHUT_WR)
    client.ended_in_order()


def websocket_is_closed(client):
    client.send(DATA, frame(0x8, struct.pack("!H", 1000)))
    expect(client.data(until=b"\x03\xe8"), frame(0x8, struct.pack("!H", 1000), masked=False))
    client.ended_in_order()


# --- of handshakes

def hello(version=0x0303, versions=(), more=b"", sign=True, suites=b"\x13\x01\xc0\x2b"):
    """A ClientHello, as a message."""
    def extension(kind, body):
        return struct.pack("!HH", kind, len(body)) + body

    def counted(body):
        return struct.pack("!H", len(body)) + body

    extensions = extension(0, counted(b"\0" + counted(NAME.encode())))
    extensions += extension(10, counted(b"\0\x1d\0\x17"))
    if sign:
        extensions += extension(13, counted(b"\x04\x03\x08\x04"))
    if versions:
        listed = b"".join(struct.pack("!H", one) for one in versions)
        extensions += extension(43, bytes([len(listed)]) + listed)
        extensions += extension(51, counted(b"\0\x1d" + counted(secrets.token_bytes(32))))
    extensions += more
    body = struct.pack("!H", version) + secrets.token_bytes(32) + b"\0" + counted(suites) + b"\1\0"
    return message(CLIENT_HELLO, body + (counted(extensions) if extensions else b""))


def padded_hello(version, size):
    """One of this length, head included."""
    versions = {TLS13: (0x0304,), TLS12: ()}[version]
    missing = size - len(hello(versions=versions, more=bytes(4)))
    return hello(versions=versions, more=struct.pack("!HH", 21, missing) + bytes(missing))


def records(content, size=FRAGMENT, kind=HANDSHAKE, version=0x0301):
    return b"".join(record(kind, content[at:at + size], version) for at in range(0, len(content), size))


def first_answer(site, sent):
    """The first record that comes: an alert, or a handshake message's type."""
    with connect(site) as tcp:
        tcp.sendall(sent)
        got = b""
        while len(got) < 7:
            more = tcp.recv(65536)
            if not more:
                return END
            got += more
        if got[0] == ALERT:
            while tcp.recv(65536):
                raise Failed("something follows the alert")
            return alert(got[5:7])
        return ("message", got[5])


def greeted(build, want):
    """`build(version)` is sent, and this comes first."""
    def run(site, version, cipher):
        expect(first_answer(site, build(version)), want)
    return run


def fatal(name):
    return ("alert", "fatal", name)


def shaken(rewrite=None, **changes):
    """A handshake whose first flight is rewritten; then data comes through."""
    def run(site, version, cipher):
        made = settings(version, cipher)
        for name, value in changes.items():
            setattr(made, name, value)
        client = Client(site, version, cipher, made=made, rewrite=rewrite)
        client.goes_on()
        client.drop()
    return run


def finished(change, then):
    def run(site, version, cipher):
        client = Client(site, version, cipher, finished=change)
        then(client)
        client.drop()
    return run


def finished_in_pieces(client, content):
    for at in range(len(content)):
        client.send(HANDSHAKE, content[at:at + 1])


def finished_is_refused(change, name):
    """In TLS 1.2 the client waits for the relay's Finished, and is told by an exception."""
    def run(site, version, cipher):
        from tlslite.errors import TLSRemoteAlert
        try:
            client = Client(site, version, cipher, finished=change)
        except TLSRemoteAlert as told:
            expect(alert(bytes([told.level, told.description])), fatal(name))
            return
        # The client has the keys of the data by then, and the alert is sealed with those.
        client.refused(name)
        client.drop()
    return run


def with_data_at_once(site, version, cipher):
    """Finished and the request are one segment."""
    held = []
    client = Client(site, version, cipher,
                    finished=lambda client, content: held.append(client.record(HANDSHAKE, content)))
    client.tcp.sendall(b"".join(held) + words(client))
    client.answered()
    client.drop()


def resumed(spoil=None):
    def run(site, version, cipher):
        first = Client(site, version, cipher)
        first.tls.write(first.words)
        while first.tls.read():
            pass
        session = first.tls.session
        first.drop()
        tickets = session.tickets if version == TLS13 else session.tls_1_0_tickets
        if not tickets:
            raise Failed("no ticket came")
        if spoil:
            spoil(tickets[0])
        client = Client(site, version, cipher, session=session)
        expect(client.tls.resumed, not spoil)
        client.goes_on()
        client.drop()
    return run


def spoil(ticket):
    ticket.ticket[20] ^= 1


def define():
    bad_mac, unexpected = "bad_record_mac", "unexpected_message"
    overflow, decode = "record_overflow", "decode_error"

    Case("1.1", "one record", "answered", "5.1", "6.2.1", carried(words))
    Case("1.2", "a record per byte", "answered", "5.1", "6.2.1", carried(lambda c: cut(c, 1)))
    Case("1.3", "records of 7 bytes", "answered", "5.1", "6.2.1", carried(lambda c: cut(c, 7)))
    Case("1.4", "one record, a segment per byte", "answered", "5.1", "6.2.1", bytewise)
    Case("1.5", "32 empty records of data", "answered", "5.1", "6.2.1",
         passes(lambda c: b"".join(c.record(DATA, b"") for _ in range(32))))
    Case("1.6", "33 empty records of data", unexpected, "contract", "contract",
         refuses(unexpected, lambda c: b"".join(c.record(DATA, b"") for _ in range(33))))
    Case("1.7", "a record with 2^14 bytes", "answered", "5.1", "6.2.1", carried(full))

    Case("2.1", "padding of one byte", "answered", "5.4", None,
         carried(lambda c: c.record(DATA, c.words, 1)))
    Case("2.2", "padding up to 2^14 + 1 bytes", "answered", "5.4", None,
         carried(lambda c: c.record(DATA, c.words, FRAGMENT - len(c.words))))
    Case("2.3", "nothing but 2^14 bytes of padding", "answered", "5.4", None,
         passes(sealed(DATA, b"", FRAGMENT)))
    Case("2.4", "padding up to 2^14 + 2 bytes", overflow, "5.4", None,
         refuses(overflow, lambda c: c.record(DATA, c.words, FRAGMENT + 1 - len(c.words))))
    Case("2.5", "padding up to 2^14 + 256 bytes of ciphertext", overflow, "5.2, 5.4", None,
         refuses(overflow, sealed(DATA, b"", FRAGMENT + 256 - 16 - 1)))
    Case("2.6", "zeros without a content type", unexpected, "5.4", None,
         refuses(unexpected, lambda c: record(DATA, bytes(c.layer._encryptThenSeal(bytearray(100), DATA)))))
    Case("2.7", "one zero without a content type", unexpected, "5.4", None,
         refuses(unexpected, lambda c: record(DATA, bytes(c.layer._encryptThenSeal(bytearray(1), DATA)))))
    Case("2.8", "no content, no content type", unexpected, "5.4", None,
         refuses(unexpected, lambda c: record(DATA, bytes(c.layer._encryptThenSeal(bytearray(), DATA)))))

    Case("3.1", "2^14 + 1 bytes of data", overflow, "5.1, 5.2", "6.2.1",
         refuses(overflow, sealed(DATA, bytes(FRAGMENT + 1))))
    Case("3.2", "the header of 2^14 + 257 bytes of ciphertext", overflow, "5.2", None,
         refuses(overflow, oversized(FRAGMENT + 257)))
    Case("3.3", "the header of 2^14 + 2049 bytes of ciphertext", overflow, None, "6.2.3",
         refuses(overflow, oversized(FRAGMENT + 2049)))
    Case("3.4", "the header of 65535 bytes", overflow, "5.2", "6.2.3", refuses(overflow, oversized(65535)))

    Case("4.1", "a bit of the tag flipped", bad_mac, "5.2", "6.2.3.3", refuses(bad_mac, altered(flip(-1))))
    Case("4.2", "a bit of the ciphertext flipped", bad_mac, "5.2", "6.2.3.3",
         refuses(bad_mac, altered(flip(14))))
    Case("4.3", "the first bit of the payload flipped", bad_mac, "5.2", "6.2.3.3",
         refuses(bad_mac, altered(flip(5))))
    Case("4.4", "a record twice", bad_mac, "5.3", "6.2.3.3", refuses(bad_mac, twice))
    Case("4.5", "a record left out", bad_mac, "5.3", "6.2.3.3", refuses(bad_mac, skipped))
    Case("4.6", "the type in the header altered", bad_mac, None, "6.2.3.3",
         refuses(bad_mac, lambda c: bytes([ALERT]) + words(c)[1:]))
    Case("4.7", "an empty payload", bad_mac, "5.2", "6.2.3.3", refuses(bad_mac, lambda c: record(DATA, b"")))
    Case("4.8", "a payload of 15 bytes, less than a tag", bad_mac, "5.2", "6.2.3.3",
         refuses(bad_mac, lambda c: record(DATA, bytes(15))))
    Case("4.9", "a payload of 16 zeros", bad_mac, "5.2", "6.2.3.3",
         refuses(bad_mac, lambda c: record(DATA, bytes(16))))
    Case("4.10", "data that is not sealed", bad_mac, "5.2", "6.2.3.3",
         refuses(bad_mac, lambda c: record(DATA, c.words)))
    Case("4.11", "an explicit nonce of its own", "answered", None, "6.2.3.3; RFC 5288, 3", carried(own_nonce),
         ciphers=("AES-128-GCM", "AES-256-GCM"))

    for place, kind in enumerate((0, 24, 99, 255), 1):
        Case(f"5.1.{place}", f"a record of type {kind}", unexpected, "5", "6.2.1",
             refuses(unexpected, lambda c, kind=kind: record(kind, c.payload(DATA, c.words))))
    for place, kind in enumerate((24, 99, 255), 1):
        Case(f"5.2.{place}", f"content of type {kind}", unexpected, "5", None,
             refuses(unexpected, sealed(kind, b"content")))
    Case("5.3", "an alert that is not sealed", unexpected, "5", None,
         refuses(unexpected, lambda c: record(ALERT, bytes([WARNING, CLOSE_NOTIFY]))))
    Case("5.4", "a handshake message that is not sealed", unexpected, "5", None,
         refuses(unexpected, lambda c: record(HANDSHAKE, key_update(0))))
    Case("5.5", "a handshake message that is not sealed", bad_mac, None, "6.2.3.3",
         refuses(bad_mac, lambda c: record(HANDSHAKE, c.wire.first[5:])))
    Case("5.6", "ChangeCipherSpec", unexpected, "5", "7.1",
         refuses(unexpected, lambda c: record(CHANGE_CIPHER_SPEC, b"\1")))
    Case("5.7", "ChangeCipherSpec, sealed", unexpected, "5", "7.1",
         refuses(unexpected, sealed(CHANGE_CIPHER_SPEC, b"\1")))
    Case("5.8", "a handshake record without content", unexpected, "5.1, 5.4", "6.2.1",
         refuses(unexpected, sealed(HANDSHAKE, b"")))
    Case("5.9", "a handshake record with nothing but padding", unexpected, "5.1, 5.4", None,
         refuses(unexpected, sealed(HANDSHAKE, b"", 100)))
    Case("5.10", "an alert record without content", unexpected, "5.1, 5.4", "6.2.1",
         refuses(unexpected, sealed(ALERT, b"")))

    Case("6.1", "KeyUpdate", "answered", "4.6.3", None, passes(updates(1)))
    Case("6.2", "KeyUpdate that asks for one", "KeyUpdate, answered", "4.6.3", None, asked_for_keys(1))
    Case("6.3", "ten that ask for one", "one KeyUpdate, answered", "4.6.3", None, asked_for_keys(10))
    Case("6.4", "ten that ask and ten that do not, with data between", "each answered", "4.6.3", None,
         keys_and_data_by_turns, times=("WebSocket",))
    Case("6.5", "32 without data between", "answered", "4.6.3", None, passes(updates(32)))
    Case("6.6", "33 without data between", unexpected, "contract", None, refuses(unexpected, updates(33)))
    Case("6.7", "KeyUpdate with padding", "answered", "4.6.3, 5.4", None,
         passes(lambda c: (c.record(HANDSHAKE, key_update(0), 300), c.update_keys())[0]))
    Case("6.8", "KeyUpdate in records of 4 and 1 bytes", "answered", "4.6.3, 5.1", None,
         passes(update_in_pieces(4, 1)))
    Case("6.9", "KeyUpdate in a record per byte", "answered", "4.6.3, 5.1", None,
         passes(update_in_pieces(1, 1, 1, 1, 1)))
    Case("6.10", "data under the old keys after it", bad_mac, "4.6.3", None,
         refuses(bad_mac, lambda c: c.record(HANDSHAKE, key_update(0)) + words(c)))
    Case("6.11", "data under the new keys without it", bad_mac, "4.6.3", None,
         refuses(bad_mac, lambda c: (c.update_keys(), words(c))[1]))
    for place, request in enumerate((2, 255), 1):
        Case(f"6.12.{place}", f"KeyUpdate with the request {request}", "illegal_parameter", "4.6.3", None,
             refuses("illegal_parameter", sealed(HANDSHAKE, key_update(request))))
    for place, body in enumerate((b"", b"\0\0", b"\1" + bytes(999)), 1):
        Case(f"6.13.{place}", f"KeyUpdate of {len(body)} bytes", decode, "4.6.3", None,
             refuses(decode, sealed(HANDSHAKE, message(KEY_UPDATE, body))))
    Case("6.14", "KeyUpdate that announces 2^24 - 1 bytes", decode, "4.6.3", None,
         refuses(decode, sealed(HANDSHAKE, b"\x18\xff\xff\xff")))
    Case("6.15", "two in one record", unexpected, "5.1", None,
         refuses(unexpected, sealed(HANDSHAKE, key_update(0) * 2)))
    Case("6.16", "one and the beginning of another in one record", unexpected, "5.1", None,
         refuses(unexpected, sealed(HANDSHAKE, key_update(0) + b"\x18")))
    Case("6.17", "a part of it, data", unexpected, "5.1", None,
         refuses(unexpected, both(half_an_update, words)))
    Case("6.18", "a part of it, close_notify", unexpected, "5.1", None,
         refuses(unexpected, both(half_an_update, said(WARNING, CLOSE_NOTIFY))))
    Case("6.19", "a part of it, an empty record of data", unexpected, "5.1", None,
         refuses(unexpected, both(half_an_update, sealed(DATA, b""))))
    Case("6.20", "KeyUpdate in TLS 1.2", unexpected, None, "7.4",
         refuses(unexpected, sealed(HANDSHAKE, key_update(0))))

    Case("7.1", "ClientHello", unexpected, "4.1.2", None, refuses(unexpected, renegotiation))
    Case("7.2", "ClientHello", "no_renegotiation as a warning, answered", None, "7.2.2", declined(renegotiation))
    Case("7.3", "ClientHello in records of 50 bytes", "no_renegotiation as a warning, answered", None, "7.2.2", declined(hello_in_pieces))
    Case("7.4", "a second ClientHello", unexpected, None, "contract", declined_once)
    Case("7.5", "a part of ClientHello, data", unexpected, None, "contract",
         refuses(unexpected, both(lambda c: c.record(HANDSHAKE, c.wire.first[5:50]), words)))
    Case("7.6", "ClientHello that announces 2^24 - 1 bytes", decode, None, "contract",
         refuses(decode, sealed(HANDSHAKE, b"\x01\xff\xff\xff")))
    names = {0: "HelloRequest", 2: "ServerHello", 4: "NewSessionTicket", 5: "EndOfEarlyData", 11: "Certificate",
             13: "CertificateRequest", 15: "CertificateVerify", 16: "ClientKeyExchange", 20: "Finished",
             77: "a message of type 77", 254: "a message of type 254"}
    for place, (kind, name) in enumerate(names.items(), 1):
        Case(f"7.7.{place}", name, unexpected, "4", "7.4",
             refuses(unexpected, sealed(HANDSHAKE, message(kind, bytes(32)))), ciphers=("AES-128-GCM",))

    Case("8.1", "close_notify", "close_notify", "6.1", "7.2.1", closes(said(WARNING, CLOSE_NOTIFY)))
    Case("8.2", "close_notify at the fatal level", "close_notify", "6.1", "7.2.1", closes(said(FATAL, CLOSE_NOTIFY)))
    Case("8.3", "close_notify, data", "close_notify, no answer", "6.1", "7.2.1",
         closes(both(said(WARNING, CLOSE_NOTIFY), words)))
    Case("8.4", "close_notify, bytes that are no record", "close_notify", "6.1", "7.2.1",
         closes(both(said(WARNING, CLOSE_NOTIFY), lambda c: b"\xff" * 50)))
    Case("8.5", "the request, close_notify", "answered", "6.1", "contract", request_then_close, times=("request",))
    Case("8.6", "a close frame", "a close frame, close_notify", "6.1", "7.2.1", websocket_is_closed,
         times=("WebSocket",))
    Case("8.7", "the end of the stream within a record", "close_notify, no answer", "6.1", "7.2.1", cut_off)
    Case("8.8", "user_canceled as a warning", "answered", "6.1", "7.2.2", passes(said(WARNING, USER_CANCELED)))
    Case("8.9", "four warnings, no_renegotiation among them", "answered", None, "7.2.2",
         passes(lambda c: b"".join(said(WARNING, one)(c) for one in (100, 90, 41, 112))))
    Case("8.10", "five warnings", unexpected, "contract", "contract",
         refuses(unexpected, lambda c: b"".join(said(WARNING, USER_CANCELED)(c) for _ in range(5))))
    Case("8.11", "another alert as a warning", decode + " or the end", "6", None, is_an_error)
    Case("8.12", "a fatal alert", "the end, no alert", "6.2", "7.2.2", ends(said(FATAL, INTERNAL_ERROR)))
    Case("8.13", "a fatal alert that is unknown", "the end, no alert", "6.2", "7.2.2", ends(said(FATAL, 254)))
    Case("8.14", "a fatal alert, data", "the end, no answer", "6.2", "7.2.2",
         ends(both(said(FATAL, INTERNAL_ERROR), words)))
    for place, level in enumerate((0, 3, 255), 1):
        Case(f"8.15.{place}", f"an alert of level {level}", "illegal_parameter", "6", "7.2",
             refuses("illegal_parameter", said(level, INTERNAL_ERROR)))
    for place, body in enumerate((b"\2", b"\1\0\0", b"\1\0" * 2), 1):
        Case(f"8.16.{place}", f"an alert of {len(body)} byte{'s' * (len(body) > 1)}", decode, "5.1, 6", "contract",
             refuses(decode, sealed(ALERT, body)))

    Handshake("9.1", "ClientHello in a record per byte", "answered", "5.1", "6.2.1",
              shaken(lambda first: [records(first[5:], 1)]))
    Handshake("9.2", "ClientHello in records of 100 bytes", "answered", "5.1", "6.2.1",
              shaken(lambda first: [records(first[5:], 100)]))
    Handshake("9.3", "ClientHello in a segment per byte", "answered", "5.1", "6.2.1",
              shaken(lambda first: [first[at:at + 1] for at in range(len(first))]))
    Handshake("9.4", "ClientHello in records of 3 bytes, a segment per byte", "answered", "5.1", "6.2.1",
              shaken(lambda first: [bytes([one]) for one in records(first[5:], 3)]))
    greeting = ("message", SERVER_HELLO)
    Handshake("9.5", "ClientHello of 16 KiB", "ServerHello", "4.1.2", "7.4.1.2",
              greeted(lambda version: records(padded_hello(version, FRAGMENT)), greeting))
    Handshake("9.6", "ClientHello of 16 KiB in records of 1000 bytes", "ServerHello", "4.1.2", "7.4.1.2",
              greeted(lambda version: records(padded_hello(version, FRAGMENT), 1000), greeting))
    # The header and the head alone: unread bytes would end the connection with a reset.
    Handshake("9.7", "ClientHello of 16 KiB and a byte", decode, "contract", "contract",
              greeted(lambda version: records(padded_hello(version, FRAGMENT + 1))[:9], fatal(decode)))
    Handshake("9.8", "ClientHello that announces 2^24 - 1 bytes", decode, "contract", "contract",
              greeted(lambda version: record(HANDSHAKE, b"\1\xff\xff\xff\3\3"), fatal(decode)))
    Handshake("9.9", "Finished as the first message", unexpected, "4", "7.4",
              greeted(lambda version: record(HANDSHAKE, message(FINISHED, bytes(32))), fatal(unexpected)))
    Handshake("9.10", "ClientHello with a byte behind its extensions", decode, "4.1.2, 6.2", "7.4.1.2",
              greeted(lambda version: records(message(CLIENT_HELLO, padded_hello(version, 400)[4:] + b"\0")),
                      fatal(decode)))
    Handshake("9.11", "no cipher suite that the relay has", "handshake_failure", "4.1.1", "7.4.1.3",
              greeted(lambda version: records(hello(versions={TLS13: (0x0304,), TLS12: ()}[version],
                                                    suites=b"\xc0\x13")), fatal("handshake_failure")))
    old = {"SSL 3.0": 0x0300, "TLS 1.0": 0x0301, "TLS 1.1": 0x0302}
    for place, (name, number) in enumerate(old.items(), 1):
        Handshake(f"9.12.{place}", f"ClientHello of {name}", "protocol_version", None, "E.1",
                  greeted(lambda version, number=number: records(
                      hello(number, sign=False, suites=b"\xc0\x13\0\x2f"), version=0x0300),
                      fatal("protocol_version")))
        Handshake(f"9.13.{place}", f"ClientHello of {name} with signature_algorithms", "protocol_version",
                  None, "E.1", greeted(lambda version, number=number: records(hello(number)),
                                       fatal("protocol_version")))
    Handshake("9.14", "supported_versions with TLS 1.1 and an unknown one alone", "protocol_version", "4.2.1", None,
              greeted(lambda version: records(hello(versions=(0x7f1c, 0x0302))), fatal("protocol_version")))
    Handshake("9.15", "supported_versions with an unknown one and TLS 1.3", "ServerHello", "4.2.1", None,
              greeted(lambda version: records(hello(versions=(0x7a7a, 0x0304))), greeting))
    Handshake("9.16", "no key share that the relay takes", "HelloRetryRequest, answered", "4.1.4", None,
              shaken(keyShares=[]))

    Handshake("9.17", "ClientHello and a part of another message in its record", unexpected, "5.1", "7.4",
              greeted(lambda version: record(HANDSHAKE, padded_hello(version, 400) + b"\x14"), fatal(unexpected)))
    Handshake("9.18", "ClientHello and another message in its record", unexpected, "5.1", "7.4",
              greeted(lambda version: record(HANDSHAKE, padded_hello(version, 400) + message(FINISHED, bytes(12))),
                      fatal(unexpected)))
    # As far as the relay reads: unread bytes would end the connection with a reset.
    Handshake("9.19", "ClientHello of 4000 bytes in a record per byte", decode, "contract", "contract",
              greeted(lambda version: records(padded_hello(version, 4000), 1)[:18437], fatal(decode)))

    going_on = Client.goes_on
    Handshake("10.1", "Finished in a record per byte", "answered", "5.1", "6.2.1",
              finished(finished_in_pieces, going_on))
    Handshake("10.2", "Finished with padding", "answered", "5.4", None,
              finished(lambda client, content: client.send(HANDSHAKE, content, 500), going_on))
    Handshake("10.3", "Finished and the request in one segment", "answered", "5.1", None, with_data_at_once)
    Handshake("10.4", "Finished of another handshake", "decrypt_error", "4.4.4", "7.4.9",
              finished_is_refused(lambda client, content: client.send(
                  HANDSHAKE, content[:-1] + bytes([content[-1] ^ 1])), "decrypt_error"))
    Handshake("10.5", "Finished with a bit of its tag flipped", bad_mac, "5.2", "6.2.3.3",
              finished_is_refused(lambda client, content: client.tcp.sendall(
                  client.record(HANDSHAKE, content)[:-1] + b"\0"), bad_mac))
    Handshake("10.6", "Finished and KeyUpdate in one record", unexpected, "5.1", None,
              finished_is_refused(lambda client, content: client.send(
                  HANDSHAKE, content + key_update(0)), unexpected))
    Handshake("10.7", "Finished and the beginning of KeyUpdate in one record", unexpected, "5.1", None,
              finished_is_refused(lambda client, content: client.send(
                  HANDSHAKE, content + key_update(0)[:2]), unexpected))
    Handshake("10.8", "data before Finished", unexpected, "2", "7.3",
              finished_is_refused(lambda client, content: client.send(DATA, b"data"), unexpected))
    Handshake("10.9", "ChangeCipherSpec before Finished", "answered", "5, D.4", None,
              finished(lambda client, content: client.tcp.sendall(
                  record(CHANGE_CIPHER_SPEC, b"\1") + client.record(HANDSHAKE, content)), going_on))
    Handshake("10.10", "ChangeCipherSpec of another value", unexpected, "5", None,
              finished_is_refused(lambda client, content: client.tcp.sendall(
                  record(CHANGE_CIPHER_SPEC, b"\2")), unexpected))

    Handshake("11.1", "a ticket", "resumed, answered", "2.2, 4.6.1", "RFC 5077, 3.1", resumed(), CIPHERS)
    Handshake("11.2", "a ticket that is not the relay's", "a full handshake, answered", "4.2.11", None,
              resumed(spoil))


# --- running -------------------------------------------------------------------------------------------

def install():
    """The packages, below target/ of the tree."""
    if not os.path.exists(os.path.join(PYTHON, "gmpy2")):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", PYTHON,
                        "--disable-pip-version-check", "--root-user-action", "ignore",
                        "tlslite-ng", "gmpy2"], check=True)


def table():
    return ["| case | sent | must happen | RFC 8446 | RFC 5246 | ciphers | when |", "|---|---|---|---|---|---|---|",
            *(case.row() for case in CASES)]


def hold(conversation):
    """Holds it: its line, and whether it went as it must."""
    case, version, cipher, when = ALL[conversation]
    name = f"{case.number} {VERSIONS[version]}, {cipher}, {when}: {case.sent}"
    try:
        case.hold(SITE, version, cipher, when)
    except Exception as error:  # whatever it is, the other conversations are held too
        return f"FAIL  {name}: {error!r}", False
    return f"ok    {name}: {case.must}", True


# What the processes share.
ALL, SITE = [], None


def main():
    global SITE
    define()
    if sys.argv[1:] == ["--table"]:
        print("\n".join(table()))
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    wrong = set(documented("TLS")) ^ set(table())
    if wrong:
        sys.exit(f"FAIL  the table of docs/conformance.md is not that of the cases: {sorted(wrong)[:6]}")
    install()
    sys.path.insert(0, PYTHON)
    only = os.environ.get("TLS_CONFORMANCE_ONLY", "")
    ALL.extend(one for case in CASES if case.number.startswith(only) for one in case.conversations())
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        SITE = Site(stack, sys.argv[1], "--domain", NAME)
        # The client computes in Python, and most conversations end with a wait.
        with multiprocessing.get_context("fork").Pool(4) as pool:
            failed = 0
            for line, is_ok in pool.imap(hold, range(len(ALL))):
                print(line, flush=True)
                failed += not is_ok
        if panicked := SITE.logged(r"event=panicked .*"):
            failed += 1
            print(f"FAIL  the relay has {panicked}")
        if failed:
            with open(SITE.log, errors="replace") as file:
                print("--- the relay's log\n" + file.read()[-4000:])
            sys.exit(f"{failed} of {len(ALL)} conversations failed")
    cases = len({case.number for case, *_ in ALL})
    print(f"{len(ALL)} conversations of {cases} cases, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
