#!/usr/bin/env python3
"""Speaks TLS with the relay by the clients that people have: curl, OpenSSL, GnuTLS, Python, Node, Go, Java.

    tests/tls.py RELAY

RELAY is the program. curl, `openssl s_client` with every cipher suite, `gnutls-cli`, the Python package
`websockets`, `ws` for Node, and the TLS of Go and of the JDK are each the phone before a binary and the
binary behind a phone, whose other end is a bare socket, over TLS or without. Then keys that are updated,
what must be refused, sessions that are resumed, and a certificate that is replaced. One line is printed
per check; the first that fails ends it; TLS_ONLY is a part of the names of those to run. Installs the two
packages below target/ of the tree if they are not there; needs curl, openssl, gnutls-cli, python3 with
pip, node, npm, go and a JDK.
"""

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
import conformance
from conformance import END, PYTHON, Node, Raw, expect, fields, frame, head
from rig import Failed, Frames, start, stop, until

NAME = "relay.test"
EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
RSA = ("rsa:2048",)
DEADLINE = 30.0
PLACE = os.path.join(conformance.ROOT, "target", "tls-interop")
GO, CLASSES = os.path.join(PLACE, "pipe"), os.path.join(PLACE, "classes")
WORD = b'"gr\xc3\xbc\xc3\x9fe \\u20ac\\/ \xf0\x9f\x98\x80"'
# A value as it is written, the largest legal frame, and one of many records.
TEXTS = (WORD, b'{ "a" : [ -0, 1.50e+3 ,null ], "a":"\\u0041" }', conformance.string(87_400),
         conformance.string(250_000))


class Site:
    """A relay with a certificate, listening with TLS and without; the way to it."""

    def __init__(self, stack, program, *options, key=EC):
        self.name = NAME
        self.place = stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-"))
        self.certificate, self.key = make_certificate(self.place, "first", key)
        self.log = os.path.join(self.place, "relay.log")
        self.servers = iter(range(1 << 30))
        start(stack, self.log, [
            program, "--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--rate-limit", "off",
            "--tls-cert", self.certificate, "--tls-key", self.key, *options])
        listening = r"event=listening address=127\.0\.0\.1:(\d+)"
        port = int(until("the relay listens", lambda: self.logged(listening + "$")))
        self.plain = ("127.0.0.1", port)
        port = int(until("it listens for TLS", lambda: self.logged(listening + " .*tls=true")))
        self.tls = ("127.0.0.1", port)

    def context(self, *protocols):
        """Trusts the relay's certificate of the moment, and nothing else."""
        context = ssl.create_default_context(cafile=self.certificate)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def connect(self, context=None, name=NAME):
        """A bare socket, over TLS."""
        tcp = socket.create_connection(self.tls, DEADLINE)
        return (context or self.context()).wrap_socket(tcp, server_hostname=name)

    def logged(self, pattern):
        with open(self.log, errors="replace") as file:
            match = re.search(pattern, file.read(), re.M)
        return match and (match.group(1) if match.groups() else match.group())

    def lines_logged(self, event):
        with open(self.log, errors="replace") as file:
            return file.read().count(f"event={event}")


# --- the clients ---------------------------------------------------------------------------------------

class Bare(Raw):
    """Bare frames over a socket, without TLS if it is told so."""

    def __init__(self, site, role, server, over=None):
        Frames.__init__(self, over or site.connect())
        self.greet()
        self.socket.sendall(head(None, role, server, host=NAME))
        expect(self.take_head().split("\r\n")[0], "HTTP/1.1 101 Switching Protocols")


    def greet(self):
        """Takes what a client says before the data."""


class Plain(Bare):
    def __init__(self, site, role, server):
        super().__init__(site, role, server, socket.create_connection(site.plain, DEADLINE))


class Piped(Bare):
    """The same frames through a program that speaks TLS between the relay and its standard streams."""

    def __init__(self, site, role, server, command):
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE)
        self.said = os.path.join(site.place, f"said-{server}-{role}.log")
        with theirs, open(self.said, "wb") as said:
            self.child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=said)
        super().__init__(site, role, server, ours)

    def has_said(self, pattern, times=1):
        """What it has said of this, if it has said it so many times."""
        with open(self.said, errors="replace") as said:
            found = re.findall(pattern, said.read(), re.M)
        return found if len(found) >= times else None

    def speaks(self, pattern, wanted):
        expect(until("the client says what it speaks", lambda: self.has_said(pattern))[0], wanted)

    def drop(self):
        super().drop()
        stop(self.child)


class OpenSsl(Piped):
    def __init__(self, site, role, server, version, *options):
        super().__init__(site, role, server, s_client(
            site, {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}[version], "-brief", "-alpn", "http/1.1",
            "-verify_return_error", "-verify_hostname", NAME, *options))
        self.speaks(r"^Protocol version: (.*)$", version)

    def command(self, letter, says):
        """Sends a command, which must be all that is read at once, and waits until it is said to be done."""
        done = len(self.has_said(says) or ())
        self.socket.sendall(letter.encode() + b"\n")
        until(f"s_client obeys {letter}", lambda: self.has_said(says, done + 1))


def openssl(version, suite):
    """Makes a client that offers one cipher suite."""
    def connect(site, role, server):
        suites = {"TLSv1.2": "-cipher", "TLSv1.3": "-ciphersuites"}[version]
        client = OpenSsl(site, role, server, version, "-ign_eof", suites, suite)
        client.speaks(r"^Ciphersuite: (.*)$", suite)
        return client
    return connect


class GnuTls(Piped):
    """What `gnutls-cli` has to say comes among the data."""

    def __init__(self, site, role, server, version, *options):
        host, port = site.tls
        self.version = version
        super().__init__(site, role, server, [
            "gnutls-cli", "--port", str(port), "--x509cafile", site.certificate, "--sni-hostname", NAME,
            "--verify-hostname", NAME, "--alpn", "http/1.1",
            "--priority", f"NORMAL:-VERS-ALL:+VERS-{version}", *options, host])

    def greet(self):
        said = self.take_words(rb".*- Simple Client Mode:\n\n")
        expect(re.findall(rb"^- Description: \((TLS[0-9.]+)-", said, re.M), [self.version.encode()])

    def take_words(self, pattern):
        while not (words := re.search(pattern, self.received, re.S)):
            self.receive()
        self.received = self.received[:words.start()] + self.received[words.end():]
        return words.group()


def gnutls(version):
    return lambda site, role, server: GnuTls(site, role, server, version)


def go(version):
    def connect(site, role, server):
        client = Piped(site, role, server, [GO, ":".join(map(str, site.tls)), NAME, site.certificate, version])
        client.speaks(r"^version (.*)$", version)
        return client
    return connect


def java(version):
    def connect(site, role, server):
        host, port = site.tls
        client = Piped(site, role, server, [
            "java", "-cp", CLASSES, "Pipe", host, str(port), NAME, site.certificate, version])
        client.speaks(r"^version (.*)$", version)
        return client
    return connect


class Websockets:
    """The package `websockets`, by its interface for asyncio: with two threads on one socket, as in
    the other one, Python's TLS loses data while a session ticket comes in."""

    loop = asyncio.new_event_loop()
    highest = ssl.TLSVersion.TLSv1_3

    def __init__(self, site, role, server):
        from websockets.asyncio.client import connect
        if not Websockets.loop.is_running():
            threading.Thread(target=Websockets.loop.run_forever, daemon=True).start()
        path = "/v1/client" if role == "phone" else "/v1/server"
        host, port = site.tls
        context = site.context()
        context.maximum_version = self.highest

        async def connected():
            return await connect(f"wss://{NAME}{path}", host=host, port=port, ssl=context,
                                 additional_headers=fields(role, server), user_agent_header="interop",
                                 open_timeout=DEADLINE, close_timeout=DEADLINE)

        self.ws = self.wait(connected())

    @staticmethod
    def wait(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, Websockets.loop).result(DEADLINE)

    def send(self, parts):
        self.wait(self.ws.send([part.decode() for part in parts]))

    def next(self):
        from websockets.exceptions import ConnectionClosed
        try:
            return "text", self.wait(self.ws.recv()).encode()
        except ConnectionClosed as closed:
            return ("close", closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else END

    def close(self, code):
        self.wait(self.ws.close(code))

    def drop(self):
        self.wait(self.ws.close())


class Websockets12(Websockets):
    highest = ssl.TLSVersion.TLSv1_2


def node(site, role, server):
    return Node(site.tls, role, server, tls=site)


def node12(site, role, server):
    return Node(site.tls, role, server, tls=site, maxVersion="TLSv1.2")


def s_client(site, *options, name=NAME):
    host, port = site.tls
    called = ["-servername", name] if name else ["-noservername"]
    return ["openssl", "s_client", "-connect", f"{host}:{port}", *called, "-CAfile", site.certificate,
            *options]


def asked(site, *options, name=NAME):
    """What `openssl s_client` says, with the answer to a request for the health page."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
    done = subprocess.run(s_client(site, "-ign_eof", *options, name=name), input=request, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE)
    return done.stdout


def curl(site, path, *fields, options=()):
    """A running curl that writes what comes to its standard output, the head first."""
    host, port = site.tls
    command = ["curl", "--silent", "--show-error", "--include", "--no-buffer", "--http1.1",
               "--max-time", str(int(DEADLINE)), "--cacert", site.certificate,
               "--resolve", f"{NAME}:{port}:{host}", f"https://{NAME}:{port}{path}", *options]
    for field in fields:
        command += ["--header", field]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def curl_as(site, role, server):
    """The same for an upgrade; its fields are those of the other clients."""
    request = head(None, role, server).decode().split("\r\n")
    fields = [line for line in request[1:] if line and not line.startswith("Host:")]
    return curl(site, request[0].split()[1], *fields)


def output(child, pattern):
    """What a child has written so far, once that holds the pattern: its groups."""
    seen, end = b"", time.monotonic() + DEADLINE
    while True:
        match = re.search(pattern, seen, re.S)
        if match:
            return match.groups()
        if not select.select([child.stdout], [], [], max(0, end - time.monotonic()))[0]:
            raise Failed(f"no {pattern} in {seen[:400]}")
        data = os.read(child.stdout.fileno(), 65536)
        if not data:
            raise Failed(f"it ended after {seen[:400]}")
        seen += data


# --- the checks ----------------------------------------------------------------------------------------

def curl_reads_the_health_page(*options):
    def check(site, stack):
        child = curl(site, "/healthz", options=options)
        stack.callback(stop, child)
        (body,) = output(child, rb"^HTTP/1\.1 200 OK\r\n.*\r\n\r\n(\{.*\})")
        expect(json.loads(body)["status"], "ok")
        expect(child.wait(DEADLINE), 0)
    return check


# Debian's curl has no WebSocket of its own: it upgrades, and writes the frames as they come.
def curl_as_binary_gets_a_message(site, stack):
    binary = curl_as(site, "binary", "curl-binary")
    stack.callback(stop, binary)
    until("its claim", lambda: site.logged("event=server_claimed server_id=curl-binary "))
    phone = Bare(site, "phone", "curl-binary")
    stack.callback(phone.drop)
    phone.send([WORD])
    (answer, got) = output(binary, rb"^(HTTP/1\.1 101 .*?)\r\n\r\n(.*\})")
    conn_id = json.loads(got[2:])["conn_id"]
    expect(got, frame(conformance.TEXT, envelope(conn_id, WORD), masked=False))


def curl_as_phone_gets_a_message(site, stack):
    binary = Bare(site, "binary", "curl-phone")
    stack.callback(binary.drop)
    phone = curl_as(site, "phone", "curl-phone")
    stack.callback(stop, phone)
    conn_id = until("the phone is there", lambda: site.logged(
        r"event=phone_registered server_id=curl-phone conn_id=(\S+)"))
    binary.send([envelope(conn_id, WORD)])
    sent = frame(conformance.TEXT, WORD, masked=False)
    output(phone, rb"^HTTP/1\.1 101 .*?\r\n\r\n()" + re.escape(sent))


class Session:
    """A client in its role, and the other side."""

    def __init__(self, site, stack, client, role, far):
        server = f"s{next(site.servers)}"
        ends = {}
        for which in ("binary", "phone"):
            ends[which] = (client if which == role else far)(site, which, server)
            stack.callback(ends[which].drop)
        self.client, self.binary, self.phone = ends[role], ends["binary"], ends["phone"]
        self.phone.send([b'"hello"'])
        self.conn_id = json.loads(self.binary.next()[1])["conn_id"]

    def exchange(self, text):
        """A message each way."""
        self.phone.send([text])
        expect(self.binary.next(), ("text", envelope(self.conn_id, text)))
        self.binary.send([envelope(self.conn_id, text)])
        expect(self.phone.next(), ("text", text))


def exchange(client, role, far):
    """A check: messages both ways between a client in its role and the other side."""
    def check(site, stack):
        session = Session(site, stack, client, role, far)
        for text in TEXTS:
            session.exchange(text)
        session.client.close(1000)
        expect(session.client.next()[:2], ("close", 1000))
    return check


def with_rsa(check):
    """The same at the relay whose certificate has a key of RSA."""
    return lambda site, stack: check(site.rsa, stack)


# Its commands are read from where the data is, so no data may begin like one: frames do not.
def openssl_updates_keys(role, far):
    def check(site, stack):
        messages = os.path.join(site.place, f"messages-{role}")

        def connect(site, role, server):
            return OpenSsl(site, role, server, "TLSv1.3", "-msg", "-msgfile", messages)

        def seen(way):
            with open(messages) as file:
                return len(re.findall(rf"^{way} TLS 1\.3, Handshake \[length 0005\], KeyUpdate", file.read(), re.M))

        session = Session(site, stack, connect, role, far)
        # The large letter asks for the relay's next keys.
        letters = "KkkKKk" * 3
        for letter in letters:
            session.client.command(letter, "^KEYUPDATE$")
            session.exchange(WORD)
        expect(seen(">>>"), len(letters))
        until("each wish is answered", lambda: seen("<<<") == letters.count("K"))
    return check


# A command is a line, and what comes before it ends one: a pong that nobody asked for, under a mask of zeros.
def gnutls_updates_keys(role, far):
    line_end = bytes([0x8A, 0x81, 0, 0, 0, 0]) + b"\n"

    def check(site, stack):
        def connect(site, role, server):
            return GnuTls(site, role, server, "TLS1.3", "--inline-commands")

        session = Session(site, stack, connect, role, far)
        for _ in range(5):
            session.client.socket.sendall(line_end + b"^rekey^\n")
            session.client.take_words(rb"- Rekey was completed\n")
            session.exchange(WORD)
    return check


# OpenSSL takes the warning for an error, and ends the connection: it is told, and nobody else suffers.
def renegotiation_is_declined(role, far):
    def check(site, stack):
        def connect(site, role, server):
            return OpenSsl(site, role, server, "TLSv1.2")

        session, other = (Session(site, stack, one, role, far) for one in (connect, Bare))
        session.exchange(WORD)
        session.client.command("R", "^RENEGOTIATING$")
        until("s_client has heard why", lambda: session.client.has_said("no renegotiation"))
        expect(session.client.child.wait(DEADLINE), 1)
        other.exchange(WORD)
    return check


def resumed(version, spoken):
    def check(site, stack):
        session = os.path.join(site.place, f"session{version}")
        first = asked(site, version, "-sess_out", session)
        expect(bool(re.search(f"^New, {spoken}", first, re.M)), True)
        again = asked(site, version, "-sess_in", session)
        expect(re.findall(r"^(\w+), TLSv|^HTTP/1\.1 (\d+) ", again, re.M), [("Reused", ""), ("", "200")])
    return check


def http_1_1_is_chosen(site, stack):
    with site.connect(site.context("h2", "http/1.1")) as socket:
        expect(socket.selected_alpn_protocol(), "http/1.1")


def h2_alone_is_refused(site, stack):
    refused(asked(site, "-alpn", "h2"), "alert no application protocol")


def tls_1_1_is_refused(site, stack):
    # The client's own policy would not even try.
    refused(asked(site, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), "alert protocol version")


def another_name_is_refused_and_shown_no_certificate(site, stack):
    refused(asked(site, name="other.test"), "alert ")


def no_name_is_refused_and_shown_no_certificate(site, stack):
    refused(asked(site, name=None), "alert ")


def refused(said, why):
    for wanted in (why, "no peer certificate available"):
        if wanted not in said:
            raise Failed(f"no {wanted!r} in {said[-600:]!r}")


def another_host_is_misdirected(site, stack):
    for path in ("/healthz", "/v1/client"):
        with site.connect() as socket:
            expect(status(socket, f"GET {path} HTTP/1.1\r\nHost: other.test\r\n\r\n"), 421)


def plain_http_is_told_so(site, stack):
    with socket.create_connection(site.tls, DEADLINE) as plain:
        expect(status(plain, f"GET /healthz HTTP/1.1\r\nHost: {NAME}\r\n\r\n"), 400)


def status(socket, request):
    """The status of the answer, which must be all that comes."""
    socket.sendall(request.encode())
    answer = b""
    while data := socket.recv(65536):
        answer += data
    match = re.fullmatch(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n", answer, re.S)
    if not match:
        raise Failed(f"the answer {answer[:200]}")
    return int(match.group(1))


def a_new_certificate_is_shown_and_a_broken_one_is_not(site, stack):
    binary, phone = Bare(site, "binary", "open"), Bare(site, "phone", "open")
    stack.callback(binary.drop)
    stack.callback(phone.drop)
    phone.send([b'"hello"'])
    conn_id = json.loads(binary.next()[1])["conn_id"]

    def goes_on():
        phone.send([WORD])
        expect(binary.next(), ("text", envelope(conn_id, WORD)))
        binary.send([envelope(conn_id, WORD)])
        expect(phone.next(), ("text", WORD))

    first, read = shown(site), site.lines_logged("certificate_read")
    certificate, key = make_certificate(site.place, "second")
    second = der(certificate)
    os.replace(key, site.key)
    os.replace(certificate, site.certificate)
    began = time.monotonic()
    until("the new certificate is shown", lambda: shown(site) == second)
    took = time.monotonic() - began
    if first == second or site.lines_logged("certificate_read") == read:
        raise Failed("nothing was read anew")
    goes_on()

    certificate, key = make_certificate(site.place, "third")
    good = shutil.copyfile(site.certificate, os.path.join(site.place, "good.pem"))
    os.remove(key)
    os.replace(certificate, site.certificate)
    kept = until("the broken pair is noticed", lambda: site.logged(r"event=certificate_kept .*"))
    if "the key is not the certificate's" not in kept:
        raise Failed(f"the log says {kept!r}")
    os.replace(good, site.certificate)
    expect(shown(site), second)
    goes_on()
    return f"shown after {took:.0f} s"


def shown(site):
    """The certificate of a new connection, whoever may have signed it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with site.connect(context) as socket:
        return socket.getpeercert(binary_form=True)


def der(certificate):
    with open(certificate) as file:
        return ssl.PEM_cert_to_DER_cert(file.read())


# What offers one suite says that it was chosen.
SUITES = {"TLSv1.3": ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"),
          "TLSv1.2": ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
                      "ECDHE-ECDSA-CHACHA20-POLY1305")}
RSA_SUITES = tuple(suite.replace("ECDSA", "RSA") for suite in SUITES["TLSv1.2"])
CLIENTS = {
    **{f"OpenSSL with {suite}": openssl(version, suite) for version, suites in SUITES.items() for suite in suites},
    "GnuTLS in TLS 1.2": gnutls("TLS1.2"), "GnuTLS in TLS 1.3": gnutls("TLS1.3"),
    "Python's websockets": Websockets, "Python's websockets in TLS 1.2": Websockets12,
    "Node's ws": node, "Node's ws in TLS 1.2": node12,
    "Go in TLS 1.2": go("TLS1.2"), "Go in TLS 1.3": go("TLS1.3"),
    "Java in TLS 1.2": java("TLSv1.2"), "Java in TLS 1.3": java("TLSv1.3"),
}
ROLES = (("phone", Bare, "over TLS"), ("binary", Plain, "without TLS"))


def as_each(clients, check):
    """The checks of these clients as phone and as binary."""
    return {f"{client} as {role}, the other side {way}": check(connect, role, far)
            for client, connect in clients.items() for role, far, way in ROLES}


CHECKS = {
    "curl reads the health page": curl_reads_the_health_page(),
    "curl reads the health page in TLS 1.2": curl_reads_the_health_page("--tls-max", "1.2"),
    "curl as binary gets a message": curl_as_binary_gets_a_message,
    "curl as phone gets a message": curl_as_phone_gets_a_message,
    **as_each(CLIENTS, exchange),
    **as_each({f"OpenSSL with {suite}": openssl("TLSv1.2", suite) for suite in RSA_SUITES},
              lambda *session: with_rsa(exchange(*session))),
    **{f"{client} as {role} updates its keys": check(role, far) for role, far, _ in ROLES
       for client, check in (("OpenSSL", openssl_updates_keys), ("GnuTLS", gnutls_updates_keys))},
    **{f"renegotiation is declined to OpenSSL as {role}": renegotiation_is_declined(role, far)
       for role, far, _ in ROLES},
    "a session of TLS 1.2 is resumed": resumed("-tls1_2", r"TLSv1\.2"),
    "a session of TLS 1.3 is resumed": resumed("-tls1_3", r"TLSv1\.3"),
    "HTTP/1.1 is chosen by ALPN": http_1_1_is_chosen,
    "HTTP/2 alone is refused": h2_alone_is_refused,
    "TLS 1.1 is refused": tls_1_1_is_refused,
    "another name is refused": another_name_is_refused_and_shown_no_certificate,
    "no name is refused": no_name_is_refused_and_shown_no_certificate,
    "another Host is misdirected": another_host_is_misdirected,
    "plain HTTP on the TLS port is told so": plain_http_is_told_so,
    "a certificate is replaced under an open session": a_new_certificate_is_shown_and_a_broken_one_is_not,
}


# --- running -------------------------------------------------------------------------------------------

def build():
    """The clients in Go and Java, below target/ of the tree."""
    sources = os.path.join(conformance.HERE, "tls")
    os.makedirs(CLASSES, exist_ok=True)
    subprocess.run(["go", "build", "-o", GO, os.path.join(sources, "pipe.go")], check=True,
                   env={**os.environ, "GO111MODULE": "off", "GOCACHE": os.path.join(PLACE, "go")})
    subprocess.run(["javac", "-d", CLASSES, os.path.join(sources, "Pipe.java")], check=True)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    conformance.install()
    build()
    sys.path.insert(0, PYTHON)
    with contextlib.ExitStack() as everything:
        site = Site(everything, sys.argv[1], "--domain", NAME)
        site.rsa = Site(everything, sys.argv[1], "--domain", NAME, key=RSA)
        everything.callback(lambda: Node.child and stop(Node.child))
        for name, check in CHECKS.items():
            if os.environ.get("TLS_ONLY", "") not in name:
                continue
            began = time.monotonic()
            try:
                with contextlib.ExitStack() as stack:
                    said = check(site, stack)
            except Exception as error:  # whatever it is, the log says more
                print(f"FAIL  {name}: {error!r}")
                with open(site.log, errors="replace") as file:
                    print("--- the relay's log\n" + file.read()[-4000:])
                sys.exit(1)
            print(f"ok    {name}{': ' + said if said else ''} ({time.monotonic() - began:.1f} s)",
                  flush=True)


def envelope(conn_id, text):
    return b'{"conn_id":"' + conn_id.encode() + b'","frame":' + text + b"}"


def make_certificate(place, label, of=EC):
    """A certificate that signs itself, and its key, for one use."""
    certificate, key = (os.path.join(place, f"{label}-{kind}.pem") for kind in ("cert", "key"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", *of, "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
         "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate],
        check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE)
    return certificate, key


if __name__ == "__main__":
    main()
