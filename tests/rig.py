"""What the checks of this folder share: programs that end with the check, and a WebSocket client."""

import base64
import contextlib
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import time

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


class Failed(Exception):
    """A check that did not hold."""


class Ended(Failed):
    """The other side has ended the connection."""


class Frames:
    """What comes from a connected socket: the head of a response, then frames."""

    def __init__(self, connected):
        self.socket = connected
        self.received = b""

    def receive(self):
        data = self.socket.recv(1 << 16)
        if not data:
            raise Ended("the connection ended")
        self.received += data

    def _take(self, count):
        while len(self.received) < count:
            self.receive()
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def take_head(self):
        while b"\r\n\r\n" not in self.received:
            self.receive()
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        return head.decode("latin-1")

    def take_frame(self):
        """The next frame: its first two bytes, and its payload."""
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first, second, self._take(size)


class WebSocket(Frames):
    """A client on a connected socket: text messages and closes, no more than these checks need."""

    def __init__(self, connected, host, path, **headers):
        super().__init__(connected)
        lines = [
            f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: " + base64.b64encode(secrets.token_bytes(16)).decode(),
        ] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = self.take_head()
        self.status = int(head.split()[1])
        self.head = head.lower()

    def send_frame(self, opcode, payload):
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 65536:
            length = b"\xfe" + struct.pack("!H", size)
        else:
            length = b"\xff" + struct.pack("!Q", size)
        # A mask of zeros is a mask.
        self.socket.sendall(bytes([0x80 | opcode]) + length + bytes(4) + payload)

    def any_frame(self):
        """The next frame; a ping is not answered."""
        first, _, payload = self.take_frame()
        return first & 0x0F, payload

    def send(self, text):
        self.send_frame(TEXT, text.encode())

    def frame(self):
        """The next frame that is no ping."""
        while True:
            opcode, payload = self.any_frame()
            if opcode != PING:
                return opcode, payload
            self.send_frame(PONG, payload)

    def text(self):
        opcode, payload = self.frame()
        if opcode != TEXT:
            raise Failed(f"a frame of opcode {opcode} came instead of a text: {payload!r}")
        return payload.decode()

    def prove(self):
        """Answers the ping behind the last message, and waits until the relay has read the answer."""
        opcode, payload = self.any_frame()
        if opcode != PING:
            raise Failed(f"a frame of opcode {opcode} came instead of a ping: {payload!r}")
        self.send_frame(PONG, payload)
        self.send_frame(PING, b"read")
        if self.frame() != (PONG, b"read"):
            raise Failed("no pong")

    def close_frame(self):
        """Reads on to the close frame; returns its code and reason."""
        while True:
            opcode, payload = self.frame()
            if opcode == CLOSE:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    def close(self):
        self.socket.close()


def until(what, condition, seconds=60.0):
    """Asks until the answer is yes, and returns it. What is not there yet may refuse meanwhile."""
    end = time.monotonic() + seconds
    while True:
        why = "no"
        try:
            answer = condition()
            if answer:
                return answer
        except (OSError, ValueError, KeyError, IndexError) as error:
            why = error
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:.0f} s: {what} ({why})")
        time.sleep(0.05)


def start(stack, log, command, variables=None):
    """Starts a program that ends, with what it started, when the stack is left."""
    with open(log, "wb") as file:
        child = subprocess.Popen(command, env=os.environ | (variables or {}),
                                 stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    stack.callback(stop, child)
    return child


def stop(child):
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_ports(count):
    """Ports that nobody has now, for programs that cannot be told to pick one.

    On all addresses, as such a program may listen: a connection from 127.7.0.1 that another check has
    just closed keeps its port there for a minute. And none of those that the kernel gives to outgoing
    connections, one of which may have it by the time that the program starts.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        lowest, highest = map(int, file.read().split())
    candidates = [*range(10000, lowest), *range(highest + 1, 65536)]
    free = []
    with contextlib.ExitStack() as stack:
        while len(free) < count:
            one = stack.enter_context(socket.socket())
            port = random.choice(candidates)
            with contextlib.suppress(OSError):
                one.bind(("", port))
                free.append(port)
    return free
