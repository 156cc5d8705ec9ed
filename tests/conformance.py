#!/usr/bin/env python3
"""Goes through the first part of docs/conformance.md: what RFC 6455 asks of a relay, case by case.

    tests/conformance.py RELAY         runs every case
    tests/conformance.py --table       prints the table for the document

RELAY is the program. The cases are driven by clients that share no code with the relay: the Python
packages `websockets` and `wsproto`, `ws` for Node, and bare sockets where a client refuses to send
what a case is about. Each client is the phone in front of a binary that echoes, and the binary behind
a phone that echoes. One line is printed at the end, or what went wrong and where. Installs the
packages below target/ of the tree if they are not there; needs python3 with pip, node and npm.
"""

import base64
import contextlib
import json
import os
import queue
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
from rig import Ended, Failed, Frames

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
DOCUMENT = os.path.join(ROOT, "docs", "conformance.md")
PLACE = os.path.join(ROOT, "target", "conformance")
PYTHON = os.path.join(PLACE, "python")
DEADLINE = 20.0
LIMIT, ALLOWANCE = 256 * 1024, 1024
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
END = ("end",)


# --- the clients: connect, send(kind, parts), ping, pong, close, next -------------------------------

def head(address, role, server, more="", host="relay"):
    path, own = {
        "phone": ("/v1/client", "X-Pyrycode-Token: token\r\n"),
        "binary": ("/v1/server", "X-Pyrycode-Version: 9.9.9-test\r\n"),
    }[role]
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    return (f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nUser-Agent: conformance\r\n"
            f"X-Pyrycode-Server: {server}\r\n{own}{more}\r\n").encode()


def fields(role, server):
    own = {"phone": ("X-Pyrycode-Token", "token"),
           "binary": ("X-Pyrycode-Version", "9.9.9-test")}[role]
    return {"X-Pyrycode-Server": server, own[0]: own[1]}


def frame(opcode, payload=b"", fin=True, rsv=0, masked=True):
    size, mask = len(payload), secrets.token_bytes(4) if masked else b""
    bit = 0x80 if masked else 0
    if size < 126:
        length = bytes([bit | size])
    elif size < 65536:
        length = bytes([bit | 126]) + struct.pack("!H", size)
    else:
        length = bytes([bit | 127]) + struct.pack("!Q", size)
    if masked:
        stream = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + length + mask + payload


class Raw(Frames):
    """Bare frames over a socket."""

    def __init__(self, address, role, server):
        super().__init__(socket.create_connection(address, DEADLINE))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Offered as browsers do; the relay must not take it.
        offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        self.socket.sendall(head(address, role, server, offer))
        answer = self.take_head()
        if not answer.startswith("HTTP/1.1 101 ") or "extensions" in answer.lower():
            raise Failed(f"the upgrade was answered {answer!r}")

    def raw(self, data, segment=None):
        for at in range(0, len(data), segment or max(1, len(data))):
            self.socket.sendall(data[at:at + (segment or len(data))])

    def send(self, parts, binary=False):
        for number, part in enumerate(parts):
            opcode = CONTINUATION if number else (BINARY if binary else TEXT)
            self.raw(frame(opcode, part, number == len(parts) - 1))

    def ping(self, payload):
        self.raw(frame(PING, payload))

    def pong(self, payload):
        self.raw(frame(PONG, payload))

    def close(self, code=None, reason=b""):
        self.raw(frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason))

    def next(self):
        try:
            first, second, payload = self.take_frame()
            if first & 0xF0 != 0x80 or second & 0x80:
                raise Failed(f"a frame that begins with {first:02x} {second:02x}")
        except Ended:
            return END
        except ConnectionError as error:
            return ("reset", str(error))
        if first == 0x80 | PING:
            # Behind a message: has the binary read it?
            with contextlib.suppress(OSError):
                self.pong(payload)
            return self.next()
        return event(first & 0x0F, payload)

    def drop(self):
        self.socket.close()


def event(opcode, payload):
    if opcode == CLOSE:
        code = struct.unpack("!H", payload[:2])[0] if payload else None
        return ("close", code, payload[2:].decode())
    return ({TEXT: "text", BINARY: "binary", PING: "ping", PONG: "pong"}[opcode], bytes(payload))


class Wsproto(Raw):
    """wsproto makes and takes the frames."""

    def __init__(self, address, role, server):
        import wsproto
        import wsproto.events as events
        from wsproto.extensions import PerMessageDeflate
        self.events, self.pending, self.parts = events, [], b""
        self.socket = socket.create_connection(address, DEADLINE)
        self.connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        extra = [(name.encode(), value.encode()) for name, value in fields(role, server).items()]
        self.raw(self.connection.send(events.Request(
            host="relay", target="/v1/client" if role == "phone" else "/v1/server",
            extensions=[PerMessageDeflate()],
            extra_headers=[(b"User-Agent", b"conformance"), *extra])))
        while not self.pending:
            self._pump()
        accepted = self.pending.pop(0)
        if not isinstance(accepted, events.AcceptConnection) or accepted.extensions:
            raise Failed(f"the upgrade was answered {accepted}")

    def _pump(self):
        data = self.socket.recv(65536)
        self.connection.receive_data(data or None)
        self.pending.extend(self.connection.events())

    def send(self, parts, binary=False):
        if binary:
            kind, parts = self.events.BytesMessage, list(parts)
        else:
            # Text goes in whole characters.
            kind, parts = self.events.TextMessage, [part.decode() for part in whole_characters(parts)]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            self.raw(self.connection.send(kind(data=part, message_finished=last)))

    def ping(self, payload):
        self.raw(self.connection.send(self.events.Ping(payload=payload)))

    def pong(self, payload):
        self.raw(self.connection.send(self.events.Pong(payload=payload)))

    def close(self, code=None, reason=b""):
        self.raw(self.connection.send(
            self.events.CloseConnection(code=code or 1000, reason=reason.decode() or None)))

    def next(self):
        while True:
            while self.pending:
                one = self.pending.pop(0)
                if isinstance(one, (self.events.TextMessage, self.events.BytesMessage)):
                    data = one.data.encode() if isinstance(one.data, str) else bytes(one.data)
                    self.parts += data
                    if one.message_finished:
                        whole, self.parts = self.parts, b""
                        return ("text" if isinstance(one.data, str) else "binary", whole)
                elif isinstance(one, self.events.CloseConnection):
                    return ("close", None if one.code == 1005 else int(one.code), one.reason or "")
                elif isinstance(one, self.events.Pong):
                    return ("pong", bytes(one.payload))
                elif isinstance(one, self.events.Ping):
                    self.raw(self.connection.send(one.response()))
            try:
                self._pump()
            except Exception as error:  # the end of the stream, in the words of the package
                return END if "closed" in str(error).lower() else ("reset", str(error))


def whole_characters(parts):
    """The same bytes, cut between characters."""
    text, at, cut = b"".join(parts).decode(), 0, []
    for part in parts[:-1]:
        size = len(part.decode(errors="ignore"))
        cut.append(text[at:at + size].encode())
        at += size
    return cut + [text[at:].encode()]


class Websockets:
    """The package `websockets`."""

    def __init__(self, address, role, server):
        from websockets.sync.client import connect
        path = "/v1/client" if role == "phone" else "/v1/server"
        # The package wants to be used as a context manager.
        self.ws = connect(f"ws://{address[0]}:{address[1]}{path}", user_agent_header="conformance",
                          additional_headers=fields(role, server), compression="deflate",
                          max_size=2 * LIMIT, open_timeout=DEADLINE, close_timeout=DEADLINE).__enter__()
        if self.ws.protocol.extensions:
            raise Failed("an extension was taken")
        self.pongs = queue.Queue()

    def send(self, parts, binary=False):
        if not binary:
            parts = [part.decode() for part in whole_characters(parts)]
        self.ws.send(iter(parts) if len(parts) > 1 else parts[0])

    def ping(self, payload):
        answered = self.ws.ping(payload)
        if not answered.wait(DEADLINE):
            raise Failed("no pong")
        self.pongs.put(("pong", payload))

    def pong(self, payload):
        self.ws.pong(payload)

    def close(self, code=None, reason=b""):
        self.ws.close(code or 1000, reason.decode())
        self.pongs.put(("close", self.ws.close_code, self.ws.close_reason))

    def next(self):
        from websockets.exceptions import ConnectionClosed
        if not self.pongs.empty():
            return self.pongs.get()
        try:
            message = self.ws.recv(DEADLINE)
        except ConnectionClosed as closed:
            got = closed.rcvd
            return ("close", got.code, got.reason) if got else END
        return ("text", message.encode()) if isinstance(message, str) else ("binary", message)

    def drop(self):
        self.ws.close()


class Node:
    """`ws` for Node, told by lines of JSON what to do; one process for all its connections; over
    TLS with `tls`, of tests/tls.py."""

    child, events, number = None, {}, 0

    def __init__(self, address, role, server, tls=None, **options):
        if Node.child is None:
            Node.child = subprocess.Popen(
                ["node", os.path.join(HERE, "conformance.mjs")], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, bufsize=1, env=os.environ | {"WS_PLACE": PLACE})
            threading.Thread(target=self.listen, daemon=True).start()
        Node.number += 1
        self.number = Node.number
        Node.events[self.number] = queue.Queue()
        path = "/v1/client" if role == "phone" else "/v1/server"
        where, headers = f"{address[0]}:{address[1]}{path}", fields(role, server)
        if tls:
            with open(tls.certificate) as file:
                options |= {"ca": file.read(), "servername": tls.name}
            self.tell(open=f"wss://{where}", headers={"Host": tls.name, **headers}, options=options)
        else:
            self.tell(open=f"ws://{where}", headers=headers)
        opened = self.next()
        if opened != ("open", ""):
            raise Failed(f"the upgrade came to {opened}")

    @staticmethod
    def listen():
        for line in Node.child.stdout:
            number, kind, *rest = json.loads(line)
            if kind in ("text", "binary", "pong"):
                rest = [bytes.fromhex(rest[0])]
            Node.events[number].put((kind, *rest))

    def tell(self, **words):
        Node.child.stdin.write(json.dumps({"number": self.number, **words}) + "\n")
        Node.child.stdin.flush()

    def send(self, parts, binary=False):
        self.tell(send=[part.hex() for part in parts], binary=binary)

    def ping(self, payload):
        self.tell(ping=payload.hex())

    def pong(self, payload):
        self.tell(pong=payload.hex())

    def close(self, code=None, reason=b""):
        self.tell(close=code or 1000, reason=reason.decode())

    def next(self):
        try:
            return Node.events[self.number].get(timeout=DEADLINE)
        except queue.Empty:
            raise Failed("nothing comes") from None

    def drop(self):
        self.tell(drop=True)


CLIENTS = {"raw": Raw, "websockets": Websockets, "wsproto": Wsproto, "ws": Node}


# --- a session: the client under test, and somebody at the other side -------------------------------

class Session:
    """The client under test as phone or as binary; the other side echoes."""

    def __init__(self, site, client, role):
        self.role, self.address = role, site.address
        self.server = f"case-{next(site.numbers)}"
        if role == "phone":
            other = [Websockets, Node][site.turn()]
            self.far = other(site.address, "binary", self.server)
            self.client = CLIENTS[client](site.address, "phone", self.server)
            self.client.send([b'"hello"'])
            opened = self.far.next()
            self.conn_id = json.loads(opened[1])["conn_id"]
        else:
            self.client = CLIENTS[client](site.address, "binary", self.server)
            self.far = Raw(site.address, "phone", self.server)
            self.far.send([b'"hello"'])
            self.conn_id = json.loads(self.client.next()[1])["conn_id"]

    def payload(self, text):
        """What the client sends for the other side to get this."""
        return text if self.role == "phone" else self.envelope(text)

    def envelope(self, text):
        return b'{"conn_id":"' + self.conn_id.encode() + b'","frame":' + text + b"}"

    def echoed(self, text):
        """The other side gets exactly this as text, sends it back, and the client gets it."""
        if self.role == "phone":
            expect(self.far.next(), ("text", self.envelope(text)))
            self.far.send([self.envelope(text)])
            expect(self.client.next(), ("text", text))
        else:
            expect(self.far.next(), ("text", text))
            self.far.send([text])
            expect(self.client.next(), ("text", self.envelope(text)))

    def closed(self, code, reason=None):
        got = self.client.next()
        if got[0] != "close" or got[1] != code or (reason is not None and got[2] != reason):
            raise Failed(f"{got} instead of a close with {code}")

    def ended(self):
        got = self.client.next()
        if got != END:
            raise Failed(f"{str(got)[:200]} instead of the end of the stream")

    def nothing_at_the_other_side(self):
        """Nothing of what the client sent came through: what comes next is its end, or a sync."""
        if self.role == "phone":
            notice = json.loads(self.far.next()[1])
            if "frame" in notice or notice["conn_id"] != self.conn_id:
                raise Failed(f"the other side got {notice}")
        else:
            self.far.ping(b"sync")
            expect(self.far.next(), ("pong", b"sync"))

    def over(self):
        for one in (self.client, self.far):
            try:
                one.drop()
            except Exception:  # it is over
                pass


def expect(got, wanted):
    if got != wanted:
        raise Failed(f"{str(got)[:200]} instead of {str(wanted)[:200]}")


# --- the cases ---------------------------------------------------------------------------------------

ALL, BARE = ("raw", "websockets", "wsproto", "ws"), ("raw",)
CASES = []


class Case:
    def __init__(self, number, sent, must, rfc, run, clients=BARE, roles=("phone", "binary")):
        self.number, self.sent, self.must, self.rfc = number, sent, must, rfc
        self.run, self.clients, self.roles = run, clients, roles
        CASES.append(self)

    def row(self):
        by = ", ".join(self.clients)
        return f"| {self.number} | {self.sent} | {self.must} | {self.rfc} | {by} | {', '.join(self.roles)} |"


def string(size):
    """A JSON string of this many bytes."""
    return b'"' + b"*" * (size - 2) + b'"'


def echo(text, binary=False, cut=None):
    def run(session):
        payload = session.payload(text)
        parts = [payload[at:at + cut] for at in range(0, len(payload), cut)] if cut else [payload]
        session.client.send(parts, binary)
        session.echoed(text)
    return run


def bare(build, then):
    """Sends what `build` makes of the session and a text, then checks."""
    def run(session):
        session.client.raw(build(session))
        then(session)
    return run


def fails(code):
    def then(session):
        session.closed(code)
        session.ended()
        session.nothing_at_the_other_side()
    return then


def then_fails(code, text):
    """The message before the mistake passes."""
    def then(session):
        if session.role == "phone":
            expect(session.far.next(), ("text", session.envelope(text)))
        else:
            expect(session.far.next(), ("text", text))
        session.closed(code)
        session.ended()
        session.nothing_at_the_other_side()
    return then


def chopped(build, segment, then):
    def run(session):
        session.client.raw(build(session), segment)
        then(session)
    return run


def define():
    word, other = b'"word"', b'"another"'
    sizes = (2, 125, 126, 127, 128, 65535, 65536)
    for place, size in enumerate(sizes, 1):
        Case(f"1.1.{place}", f"text of {size} bytes", "echoed", "5.2, 5.6", echo(string(size)), ALL)
    Case("1.1.8", "text of 300 bytes byte by byte", "echoed", "5.2", chopped(
        lambda s: frame(TEXT, s.payload(string(300))), 1, lambda s: s.echoed(string(300))))
    Case("1.1.9", "text of 65536 bytes in segments of 997", "echoed", "5.2", chopped(
        lambda s: frame(TEXT, s.payload(string(65536))), 997, lambda s: s.echoed(string(65536))))
    for place, size in enumerate(sizes, 1):
        Case(f"1.2.{place}", f"UTF-8 of {size} bytes with the binary opcode", "echoed as text",
             "5.6; contract", echo(string(size), binary=True), ALL)

    def pinged(payload):
        def run(session):
            session.client.ping(payload)
            expect(session.client.next(), ("pong", payload))
        return run

    Case("2.1", "an empty ping", "an empty pong", "5.5.2, 5.5.3", pinged(b""), BARE)
    Case("2.2", "a ping with text", "the same payload", "5.5.3", pinged(b"Hello"), ALL)
    Case("2.3", "a ping with bytes that are no UTF-8", "the same payload", "5.5.3",
         pinged(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), ALL)
    Case("2.4", "a ping of 125 bytes", "the same payload", "5.5", pinged(b"\xfe" * 125), ALL)
    Case("2.5", "a ping of 126 bytes", "1002", "5.5", bare(lambda s: frame(PING, b"\xfe" * 126), fails(1002)))
    Case("2.6", "a ping of 125 bytes byte by byte", "the same payload", "5.5",
         chopped(lambda s: frame(PING, b"\xfe" * 125), 1,
                 lambda s: expect(s.client.next(), ("pong", b"\xfe" * 125))))

    def unasked(payload):
        def run(session):
            session.client.pong(payload)
            echo(word)(session)
        return run

    Case("2.7", "a pong without payload that nobody asked for, a text", "the text echoed, no answer",
         "5.5.3", unasked(b""), ALL)
    Case("2.8", "a pong with payload that nobody asked for, a text", "the text echoed, no answer",
         "5.5.3", unasked(b"unasked"), ALL)
    Case("2.9", "an unasked pong, a ping", "the pong of the ping alone", "5.5.3",
         bare(lambda s: frame(PONG, b"unasked") + frame(PING, b"asked"),
              lambda s: expect(s.client.next(), ("pong", b"asked"))))

    def last_of_ten(session):
        # Of several pings the last must be answered; the relay may skip others.
        while True:
            got = session.client.next()
            if got == ("pong", b"ping 9"):
                return
            if got[0] != "pong":
                raise Failed(f"{got} instead of a pong")

    ten = b"".join(frame(PING, f"ping {number}".encode()) for number in range(10))
    Case("2.10", "ten pings at once", "the last is answered", "5.5.3", bare(lambda s: ten, last_of_ten))
    Case("2.11", "ten pings byte by byte", "the last is answered", "5.5.3", chopped(lambda s: ten, 1, last_of_ten))

    for bits in range(1, 8):
        Case(f"3.{bits}", f"text with reserved bits {bits:03b}", "1002, nothing of it passes", "5.2",
             bare(lambda s, bits=bits: frame(TEXT, s.payload(word), rsv=bits), fails(1002)))
    Case("3.8", "a text, then one with a reserved bit", "the first passes, then 1002", "5.2",
         bare(lambda s: frame(TEXT, s.payload(word)) + frame(TEXT, s.payload(other), rsv=4),
              then_fails(1002, word)))
    Case("3.9", "binary with a reserved bit", "1002", "5.2",
         bare(lambda s: frame(BINARY, s.payload(word), rsv=2), fails(1002)))
    Case("3.10", "a ping with a reserved bit", "1002", "5.2", bare(lambda s: frame(PING, b"", rsv=1), fails(1002)))
    Case("3.11", "a close with a reserved bit", "1002", "5.2",
         bare(lambda s: frame(CLOSE, b"\x03\xe8", rsv=4), fails(1002)))

    for place, opcode in enumerate((3, 4, 5, 6, 7), 1):
        Case(f"4.1.{place}", f"opcode {opcode}", "1002", "5.2", bare(lambda s, o=opcode: frame(o), fails(1002)))
    for place, opcode in enumerate((11, 12, 13, 14, 15), 1):
        Case(f"4.2.{place}", f"opcode {opcode}", "1002", "5.2", bare(lambda s, o=opcode: frame(o), fails(1002)))
    Case("4.3", "a text, then opcode 3", "the text passes, then 1002", "5.2",
         bare(lambda s: frame(TEXT, s.payload(word)) + frame(3), then_fails(1002, word)))

    def halves(session, between=b"", text=word):
        payload = session.payload(text)
        return frame(TEXT, payload[:9], fin=False) + between + frame(CONTINUATION, payload[9:])

    Case("5.1", "a ping in two fragments", "1002", "5.5", bare(
        lambda s: frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b"), fails(1002)))
    Case("5.2", "a pong in two fragments", "1002", "5.5", bare(
        lambda s: frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b"), fails(1002)))
    Case("5.3", "a text in fragments of 9 bytes", "echoed whole", "5.4", echo(b'"in several pieces"', cut=9), ALL)
    Case("5.4", "a text in fragments of one byte", "echoed whole", "5.4", echo(b'"bytes"', cut=1), ALL)
    Case("5.5", "fragments, byte by byte", "echoed whole", "5.4",
         chopped(lambda s: halves(s), 1, lambda s: s.echoed(word)))

    def ponged_and_echoed(session):
        expect(session.client.next(), ("pong", b"amid"))
        session.echoed(word)

    Case("5.6", "a ping between two fragments", "the pong, then the text whole", "5.4",
         bare(lambda s: halves(s, frame(PING, b"amid")), ponged_and_echoed))
    Case("5.7", "empty fragments around a text", "echoed whole", "5.4", bare(
        lambda s: frame(TEXT, b"", fin=False) + frame(CONTINUATION, s.payload(word), fin=False)
        + frame(CONTINUATION, b""), lambda s: s.echoed(word)))
    Case("5.8", "a continuation without a beginning, final", "1002", "5.4",
         bare(lambda s: frame(CONTINUATION, s.payload(word)), fails(1002)))
    Case("5.9", "a continuation without a beginning, not final", "1002", "5.4",
         bare(lambda s: frame(CONTINUATION, s.payload(word), fin=False), fails(1002)))
    Case("5.10", "a whole text, then a continuation", "the text passes, then 1002", "5.4",
         bare(lambda s: frame(TEXT, s.payload(word)) + frame(CONTINUATION, b"x"), then_fails(1002, word)))
    Case("5.11", "a second beginning amid a message", "1002", "5.4", bare(
        lambda s: frame(TEXT, s.payload(word)[:4], fin=False) + frame(TEXT, s.payload(word)), fails(1002)))
    Case("5.12", "a binary beginning amid a text", "1002", "5.4", bare(
        lambda s: frame(TEXT, s.payload(word)[:4], fin=False) + frame(BINARY, s.payload(word)), fails(1002)))

    def many(session):
        text = b'"' + b"many" * 50 + b'"'
        payload = session.payload(text)
        pieces = [payload[at:at + 4] for at in range(0, len(payload), 4)]
        data = b""
        for number, piece in enumerate(pieces):
            data += frame(TEXT if number == 0 else CONTINUATION, piece, number == len(pieces) - 1)
            data += frame(PING, b"amid") if number == 5 else b""
        session.client.raw(data)
        expect(session.client.next(), ("pong", b"amid"))
        session.echoed(text)

    Case("5.13", "many fragments with a ping among them", "the pong, then the text whole", "5.4", many)

    good = {
        "1": ("ASCII and umlauts", "κόσμε Hello-µ@ßöäüàá-UTF-8!!".encode()),
        "2": ("the first characters of each length", b"\x7f\xc2\x80\xe0\xa0\x80\xf0\x90\x80\x80"),
        "3": ("the last characters of each length", b"\x7f\xdf\xbf\xef\xbf\xbf\xf4\x8f\xbf\xbf"),
        "4": ("around the surrogates", b"\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbd"),
        "5": ("characters that are none", b"\xef\xbf\xbe\xef\xbf\xbf\xf0\x9f\xbf\xbe\xf4\x8f\xbf\xbf"),
        "6": ("an emoji", "😀".encode()),
    }
    for place, (name, text) in good.items():
        Case(f"6.1.{place}", f"UTF-8: {name}", "echoed", "5.6, 8.1", echo(b'"' + text + b'"'), ALL)
        Case(f"6.2.{place}", f"UTF-8: {name}, a fragment a byte", "echoed", "5.4, 8.1",
             echo(b'"' + text + b'"', cut=1), ("raw", "websockets", "wsproto", "ws"))
    bad = {
        "1": ("a lone continuation byte", b"\x80"),
        "2": ("the last continuation byte", b"\xbf"),
        "3": ("the beginning of two bytes alone", b"\xc3 "),
        "4": ("the beginning of three bytes alone", b"\xe2 "),
        "5": ("the beginning of four bytes alone", b"\xf0 "),
        "6": ("a character cut off", b"\xe2\x82"),
        "7": ("bytes that never occur", b"\xfe\xff"),
        "8": ("overlong slash in two bytes", b"\xc0\xaf"),
        "9": ("overlong slash in three bytes", b"\xe0\x80\xaf"),
        "10": ("overlong slash in four bytes", b"\xf0\x80\x80\xaf"),
        "11": ("the largest overlong of two bytes", b"\xc1\xbf"),
        "12": ("an overlong NUL", b"\xc0\x80"),
        "13": ("five bytes", b"\xf8\x88\x80\x80\x80"),
        "14": ("six bytes", b"\xfc\x84\x80\x80\x80\x80"),
        "15": ("above U+10FFFF", b"\xf4\x90\x80\x80"),
        "16": ("a high surrogate", b"\xed\xa0\x80"),
        "17": ("a low surrogate", b"\xed\xbf\xbf"),
        "18": ("a pair of surrogates", b"\xed\xa0\x80\xed\xb0\x80"),
    }
    for place, (name, text) in bad.items():
        Case(f"6.3.{place}", f"not UTF-8: {name}", "1007, nothing of it passes", "8.1",
             bare(lambda s, text=text: frame(TEXT, s.payload(b'"' + text + b'"')), fails(1007)))
    Case("6.4.1", "not UTF-8 across two fragments", "1007", "8.1", bare(
        lambda s: halves(s, text=b'"\xce\xba\xed\xa0\x80edited"'), fails(1007)))
    Case("6.4.2", "binary that is no UTF-8", "phone: 1007", "contract", bare(
        lambda s: frame(BINARY, b'"\xff"'), fails(1007)), roles=("phone",))

    def dropped(session):
        session.client.send([session.payload(b'"\xff"')], binary=True)
        echo(word)(session)

    Case("6.4.3", "binary that is no UTF-8, then a text", "binary: dropped; the text passes", "contract",
         dropped, roles=("binary",))

    def closes(code, reason=b""):
        def run(session):
            echo(word)(session)
            session.client.close(code, reason)
            session.closed(code)
        return run

    Case("7.1.1", "a text, then a close", "the text echoed, the close answered", "5.5.1, 7.1", closes(1000), ALL)

    def answered(code=1000):
        def then(session):
            session.closed(code)
            session.ended()
            session.nothing_at_the_other_side()
        return then

    good_close = frame(CLOSE, b"\x03\xe8")
    Case("7.1.2", "two closes", "one answer, then the end", "5.5.1", bare(lambda s: good_close * 2, answered()))
    Case("7.1.3", "a close, then a ping", "the close answered, no pong", "5.5.1",
         bare(lambda s: good_close + frame(PING), answered()))
    Case("7.1.4", "a close, then a text", "the close answered, the text does not pass", "5.5.1",
         bare(lambda s: good_close + frame(TEXT, s.payload(word)), answered()))
    Case("7.1.5", "a fragment, a close, the rest", "the close answered, nothing passes", "5.5.1",
         bare(lambda s: halves(s, good_close), answered()))

    def large_then_close(session):
        text = string(200_000)
        session.client.raw(frame(TEXT, session.payload(text)) + good_close + frame(PING))
        expect(session.far.next(), ("text", session.envelope(text) if session.role == "phone" else text))
        session.closed(1000)
        session.ended()

    Case("7.1.6", "200,000 bytes, a close, a ping", "the text passes, the close is answered", "5.5.1", large_then_close)
    Case("7.3.1", "an empty close", "an empty close", "5.5.1", bare(lambda s: frame(CLOSE), answered(None)))
    Case("7.3.2", "a close of one byte", "1002", "5.5.1", bare(lambda s: frame(CLOSE, b"a"), answered(1002)))
    Case("7.3.3", "a close with a code", "the code", "5.5.1", closes(1000), ALL)
    Case("7.3.4", "a close with a reason", "the code", "5.5.1", closes(1000, b"reason"), ALL)
    Case("7.3.5", "a close with a reason of 123 bytes", "the code", "5.5", closes(1000, b"r" * 123), ALL)
    Case("7.3.6", "a close of 126 bytes", "1002", "5.5",
         bare(lambda s: frame(CLOSE, b"\x03\xe8" + b"r" * 124), answered(1002)))
    Case("7.5.1", "a reason that is no UTF-8", "1007", "5.5.1, 8.1",
         bare(lambda s: frame(CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80"), answered(1007)))
    for place, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1):
        # Node's `ws` sends each of them; `wsproto` and `websockets` likewise.
        Case(f"7.7.{place}", f"a close with {code}", f"{code}", "7.4", closes(code),
             ALL if code not in (1010,) else BARE)
    for place, code in enumerate((0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535), 1):
        Case(f"7.9.{place}", f"a close with {code}", "1002", "7.4",
             bare(lambda s, code=code: frame(CLOSE, struct.pack("!H", code)), answered(1002)))

    def at_the_limit(session):
        text = string(LIMIT)
        session.client.send([session.payload(text)])
        session.echoed(text)

    Case("9.1", "a message of 256 KiB", "echoed", "7.4.1; contract", at_the_limit, ALL)
    Case("9.2", "one byte more", "1009", "7.4.1; contract", bare(
        lambda s: frame(TEXT, string(LIMIT + 1 + (ALLOWANCE if s.role == "binary" else 0))), fails(1009)))
    Case("9.3", "the same in fragments", "1009", "7.4.1; contract", bare(
        lambda s: frame(TEXT, b" " * 200_000, fin=False) + frame(CONTINUATION, b" " * 64_000), fails(1009)))
    Case("9.4", "a length of 2^63 - 1", "1009", "5.2", bare(
        lambda s: b"\x81\xff\x7f" + b"\xff" * 7 + bytes(4), fails(1009)))
    for place, cut in enumerate((64, 1024, 16384), 1):
        Case(f"9.5.{place}", f"100,000 bytes in fragments of {cut}", "echoed whole", "5.4", echo(string(100_000), cut=cut), ALL)
    for place, segment in enumerate((64, 1000, 65000), 1):
        Case(f"9.6.{place}", f"100,000 bytes in segments of {segment}", "echoed", "5.2",
             chopped(lambda s: frame(TEXT, s.payload(string(100_000))), segment,
                     lambda s: s.echoed(string(100_000))))

    def often(session):
        for number in range(200):
            echo(b"[%d]" % number)(session)

    Case("9.7", "200 texts, one after the other", "each echoed", "5.6", often, ALL)
    Case("10.1", "65536 bytes in fragments of 1300", "echoed whole", "5.4", echo(string(65536), cut=1300), ALL)
    Case("12.1", "permessage-deflate offered, a text", "no extension taken, the text echoed", "9.1; contract", echo(word), ALL)
    Case("13.1", "a frame without a mask", "1002", "5.1", bare(
        lambda s: frame(TEXT, s.payload(word), masked=False), fails(1002)))
    Case("13.2", "a text that is no JSON", "phone: 1007", "contract", bare(
        lambda s: frame(TEXT, b"{nope"), fails(1007)), roles=("phone",))
    Case("13.3", "every form of JSON value", "echoed byte for byte", "contract",
         echo(b'{ "a" : [ -0, 1.50e+3 ,null,true ], "a":"\\u0041\\/" }'), ALL)


# --- running -----------------------------------------------------------------------------------------

class Site:
    def __init__(self, address):
        self.address = address
        self.numbers = iter(range(1 << 30))
        self.turns = 0

    def turn(self):
        self.turns += 1
        return self.turns % 2


def install():
    """The packages, below target/ of the tree."""
    os.makedirs(PLACE, exist_ok=True)
    if not os.path.exists(os.path.join(PYTHON, "wsproto")):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", PYTHON,
                        "--disable-pip-version-check", "--root-user-action", "ignore",
                        "websockets", "wsproto"], check=True)
    if not os.path.exists(os.path.join(PLACE, "node_modules", "ws")):
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", PLACE, "ws"],
                       check=True, stdin=subprocess.DEVNULL)


def table():
    return ["| case | sent | must happen | RFC 6455 | clients | as |", "|---|---|---|---|---|---|",
            *(case.row() for case in CASES)]


def documented(part):
    """The table of a part of the document."""
    with open(DOCUMENT) as file:
        parts = file.read().split("\n## ")
    (found,) = [one for one in parts if one.startswith(part + "\n")]
    return [line for line in found.splitlines() if line.startswith("|")]


def main():
    define()
    if sys.argv[1:] == ["--table"]:
        print("\n".join(table()))
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    install()
    sys.path.insert(0, PYTHON)
    if documented("WebSocket") != table():
        odd = set(documented("WebSocket")) ^ set(table())
        sys.exit(f"FAIL  the table of docs/conformance.md is not that of the cases: {sorted(odd)[:6]}")
    only = os.environ.get("CONFORMANCE_ONLY")
    relay = subprocess.Popen(
        [sys.argv[1], "--listen", "127.0.0.1:0", "--rate-limit", "off", "--log-level", "info"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    line = next((line for line in relay.stderr if "event=listening" in line), "")
    threading.Thread(target=relay.stderr.read, daemon=True).start()
    began, ran, failed = time.monotonic(), 0, 0
    try:
        port = int(re.search(r"event=listening address=127\.0\.0\.1:(\d+)", line).group(1))
        site = Site(("127.0.0.1", port))
        for case in CASES:
            if only and not case.number.startswith(only):
                continue
            for role in case.roles:
                for client in case.clients:
                    ran += 1
                    try:
                        session = Session(site, client, role)
                        try:
                            case.run(session)
                        finally:
                            session.over()
                    except Exception as error:  # whatever it is, the other cases are run too
                        failed += 1
                        print(f"FAIL  {case.number} {client} as {role}, {case.sent}: {error!r}", flush=True)
    finally:
        relay.terminate()
        relay.wait(DEADLINE)
    if failed:
        sys.exit(f"{failed} of {ran} runs failed")
    print(f"ok    {len(CASES)} cases in {ran} runs with {len(CLIENTS)} clients as phone and as binary "
          f"({time.monotonic() - began:.1f} s)")


if __name__ == "__main__":
    main()
