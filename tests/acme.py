#!/usr/bin/env python3
"""Orders certificates of the real pebble, an ACME server for tests, and uses them.

    tests/acme.py RELAY

RELAY is the program. Several relays run side by side, each at a loopback address and under a name of
its own, with certificates that live for half a minute. One line is printed a check; the first that
fails ends it. Needs pebble (with pebble-challtestsrv), openssl and python3.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
from rig import Failed, WebSocket, free_ports, start, until

DEADLINE = 60.0
# Two thirds are more than the pause that two orders must have between them.
LIFE = 30
NOBODY = "127.0.0.9"


class Directory:
    """Pebble and its server of names; the names are those of the relays."""

    def __init__(self, stack, place):
        self.stack, self.place = stack, place
        self.port, self.management, self.dns, self.names = free_ports(4)
        # The same port at every address: pebble knows one.
        (self.tls_port,) = free_ports(1)
        self.authority = make_certificates(place)
        self.log = os.path.join(place, "pebble.log")
        # No default address: a name that is not known is not found.
        start(stack, os.path.join(place, "names.log"), [
            "pebble-challtestsrv", "-dns01", f"127.0.0.1:{self.dns}",
            "-management", f"127.0.0.1:{self.names}", "-defaultIPv4", "", "-defaultIPv6", "",
            "-http01", "", "-https01", "", "-tlsalpn01", ""], {})
        until("names can be set", lambda: self.point("some.test", NOBODY))

    def start(self):
        config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self.management}",
            "certificate": os.path.join(self.place, "pebble.pem"),
            "privateKey": os.path.join(self.place, "pebble.key"),
            "httpPort": 1, "tlsPort": self.tls_port, "certificateValidityPeriod": LIFE,
        }
        path = os.path.join(self.place, "pebble.json")
        with open(path, "w") as file:
            json.dump({"pebble": config}, file)
        # Every name is checked with every order, at once.
        start(self.stack, self.log,
              ["pebble", "-config", path, "-dnsserver", f"127.0.0.1:{self.dns}"],
              {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"})
        root = until("pebble answers", self._root)
        self.trust = ssl.create_default_context(cadata=root)

    def _root(self):
        trust = ssl.create_default_context(cafile=self.authority)
        client = http.client.HTTPSConnection("localhost", self.management, timeout=5, context=trust)
        client.request("GET", "/roots/0")
        return client.getresponse().read().decode()

    def point(self, name, address):
        """Lets a name have this address."""
        for path, value in (("clear-a", {}), ("add-a", {"addresses": [address]})):
            client = http.client.HTTPConnection("127.0.0.1", self.names, timeout=5)
            client.request("POST", "/" + path, json.dumps({"host": name + ".", **value}))
            if client.getresponse().status != 200:
                raise Failed(f"{name} cannot be pointed at {address}")
        return True

    def orders(self):
        return len(self.logged(r"Added order "))

    def logged(self, pattern):
        with open(self.log, errors="replace") as file:
            return re.findall(pattern, file.read())


class Relay:
    """A relay of one name or more, with a cache of its own, to be started again and again."""

    def __init__(self, program, directory, address, names):
        self.program, self.directory = program, directory
        self.name, self.names, self.address = names[0], names, address
        self.cache = os.path.join(directory.place, self.name)
        self.logs = []

    def start(self, authority=None):
        """Starts it; it trusts pebble's authority, or another file."""
        self.logs.append(os.path.join(self.directory.place, f"{self.name}-{len(self.logs)}.log"))
        self.child = start(self.directory.stack, self.logs[-1], [
            self.program, "--tls-listen", f"{self.address}:{self.directory.tls_port}",
            "--domain", ",".join(self.names), "--acme-contact", "admin@example.org",
            "--acme-directory", f"https://localhost:{self.directory.port}/dir",
            "--cert-cache", self.cache,
        ], {"SSL_CERT_FILE": authority or self.directory.authority, "SSL_CERT_DIR": "",
            "RUST_LOG": "trace"})
        self.event("listening")

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        expect(self.child.wait(DEADLINE), 0)

    def events(self, event):
        """The lines about an event since the last start."""
        with open(self.logs[-1], errors="replace") as file:
            return re.findall(rf"^.* event={event} ?(.*)$", file.read(), re.M)

    def event(self, event, number=1):
        return until(f"{self.name} logs {event} for the {number}. time",
                     lambda: self.events(event)[number - 1:number])[0]

    def connect(self, name=None, trust=None):
        """A TLS connection, verified by pebble's root."""
        raw = socket.create_connection((self.address, self.directory.tls_port), DEADLINE)
        try:
            trust = trust or self.directory.trust
            return trust.wrap_socket(raw, server_hostname=name or self.name)
        except OSError:
            raw.close()
            raise

    def serial(self):
        with self.connect() as connection:
            return connection.getpeercert()["serialNumber"]

    def request(self, path, server=""):
        """A connection with a request for an upgrade on it, and the head of the answer."""
        return WebSocket(
            self.connect(), f"{self.name}:{self.directory.tls_port}", path, X_Pyrycode_Server=server,
            X_Pyrycode_Version="1", X_Pyrycode_Token="token", X_Pyrycode_Device_Name="phone",
            User_Agent="test")

    def upgrade(self, path, server):
        peer = self.request(path, server)
        expect(peer.status, 101)
        return peer


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="acme-"))
        try:
            run(stack, place, sys.argv[1])
        except (Failed, OSError) as error:
            print(f"FAIL  {error}")
            for log in sorted(os.listdir(place)):
                if log.endswith(".log"):
                    with open(os.path.join(place, log), errors="replace") as file:
                        print(f"--- {log}\n" + file.read()[-4000:])
            sys.exit(1)


def run(stack, place, program):
    names = {"127.0.0.1": ["early.test"], "127.0.0.2": ["relay.test", "also.relay.test"],
             "127.0.0.3": ["lost.test"]}
    directory = Directory(stack, place)
    relays = [Relay(program, directory, address, names[address]) for address in names]
    for relay in relays:
        for name in relay.names:
            directory.point(name, relay.address)
    early, relay, lost = relays
    # In this order: while one waits for its next attempt, the others are looked at.
    check(a_cache_that_others_may_look_into_is_refused, relay)
    check(a_directory_that_is_down_is_told_and_nothing_is_served, early)
    directory.start()
    check(a_machine_that_does_not_trust_the_directory_is_told_so, place, relay)
    check(the_first_certificate_is_issued_and_shown, relay)
    check(nobody_gets_the_answer_of_a_check_that_is_over, relay)
    check(a_client_that_trusts_the_root_is_served, relay)
    check(another_relay_gets_one_too, lost)
    check(the_threads_of_an_order_end, relay)
    check(after_a_restart_the_certificate_comes_from_the_cache, directory, relay)
    directory.point(lost.name, NOBODY)
    first = relay.serial()
    pair = open_pair(relay)
    check(once_the_directory_is_up_the_certificate_is_there, early)
    check(a_certificate_is_renewed_in_time_and_connections_stay, relay, first, pair)
    check(a_check_that_fails_is_told_and_the_old_certificate_serves_on, lost)
    directory.point(lost.name, lost.address)
    check(after_that_the_next_attempt_brings_a_certificate, lost)
    check(each_relay_keeps_its_account, directory, relays)
    check(the_files_of_the_cache_are_for_the_relay_alone, relays)
    check(the_logs_hold_no_key_at_any_level, relays)


def check(function, *arguments):
    began = time.monotonic()
    name = function.__name__.replace("_", " ")
    try:
        function(*arguments)
    except (Failed, OSError) as error:
        raise Failed(f"{name}: {error}") from error
    print(f"ok    {name} ({time.monotonic() - began:.1f} s)", flush=True)


def a_cache_that_others_may_look_into_is_refused(relay):
    os.mkdir(relay.cache)
    os.chmod(relay.cache, 0o755)
    ended = subprocess.run(
        [relay.program, "--tls-listen", "127.0.0.1:0", "--domain", relay.name,
         "--cert-cache", relay.cache],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE)
    if ended.returncode not in (1, 2):
        raise Failed(f"the exit code is {ended.returncode}")
    for word in (relay.cache, "mode is 0755", "0700"):
        if word not in ended.stderr:
            raise Failed(f"{word!r} is not in {ended.stderr!r}")
    expect(os.listdir(relay.cache), [])
    os.chmod(relay.cache, 0o700)


def a_directory_that_is_down_is_told_and_nothing_is_served(relay):
    relay.start()
    told = relay.event("certificate_order_failed")
    for word in ("Connection refused", "days_left=none"):
        if word not in told:
            raise Failed(f"{word!r} is not in {told!r}")
    seconds = int(re.search(r"next_attempt_s=(\d+)", told).group(1))
    if not 15 <= seconds <= 19:
        raise Failed(f"the next attempt is in {seconds} s")
    relay.directory.trust = ssl.create_default_context()
    try:
        relay.connect()
    except ssl.SSLError:
        return
    raise Failed("a handshake was done without a certificate")


def a_machine_that_does_not_trust_the_directory_is_told_so(place, relay):
    # Any certificate that has not signed pebble's will do.
    other = os.path.join(place, "pebble.pem")
    for authority, reason in ((os.path.join(place, "missing.pem"), "trusts no root"),
                              (other, "certificate is not trusted")):
        relay.start(authority)
        told = relay.event("certificate_order_failed")
        if reason not in told:
            raise Failed(f"{reason!r} is not in {told!r}")
        relay.stop()


def the_first_certificate_is_issued_and_shown(relay):
    relay.start()
    told = relay.event("certificate_issued")
    if not re.fullmatch(r"not_after=20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ domains=relay\.test,also\.relay\.test",
                        told):
        raise Failed(told)
    for name in relay.names:
        relay.connect(name).close()
    expect(relay.events("certificate_order_failed"), [])
    expect(len(relay.events("challenge_answered")) >= len(relay.names), True)


def nobody_gets_the_answer_of_a_check_that_is_over(relay):
    checking = ssl.create_default_context()
    checking.check_hostname, checking.verify_mode = False, ssl.CERT_NONE
    checking.set_alpn_protocols(["acme-tls/1"])
    try:
        relay.connect(trust=checking)
    except ssl.SSLError:
        return
    raise Failed("a handshake with acme-tls/1 was done")


def a_client_that_trusts_the_root_is_served(relay):
    peer = relay.request("/healthz")
    peer.close()
    expect(peer.status, 200)
    binary, phone = open_pair(relay)
    carries(binary, phone, "first")
    for peer in (binary, phone):
        peer.close()


def another_relay_gets_one_too(relay):
    relay.start()
    relay.event("certificate_issued")
    relay.serial()


def the_threads_of_an_order_end(relay):
    # One is the relay's, the other that of the event loop.
    until("there are two threads", lambda: len(os.listdir(f"/proc/{relay.child.pid}/task")) == 2)


def after_a_restart_the_certificate_comes_from_the_cache(directory, relay):
    serial, orders = relay.serial(), directory.orders()
    relay.stop()
    relay.start()
    relay.event("certificate_cached")
    expect(relay.serial(), serial)
    carries(*open_pair(relay), "cached")
    expect(relay.events("certificate_issued"), [])
    expect(directory.orders(), orders)


def once_the_directory_is_up_the_certificate_is_there(relay):
    relay.event("certificate_issued")
    relay.serial()
    expect(len(relay.events("certificate_order_failed")), 1)


def a_certificate_is_renewed_in_time_and_connections_stay(relay, first, pair):
    relay.event("certificate_issued")
    if relay.serial() == first:
        raise Failed("the certificate is still the first one")
    carries(*pair, "before and after")
    expect(relay.events("certificate_order_failed"), [])


def a_check_that_fails_is_told_and_the_old_certificate_serves_on(relay):
    with_old = relay.serial()
    told = relay.event("certificate_order_failed")
    for word in ("check of lost.test failed: ", NOBODY, "days_left=0"):
        if word not in told:
            raise Failed(f"{word!r} is not in {told!r}")
    expect(relay.serial(), with_old)


def after_that_the_next_attempt_brings_a_certificate(relay):
    relay.event("certificate_issued", 2)
    relay.serial()
    expect(len(relay.events("certificate_order_failed")), 1)


def each_relay_keeps_its_account(directory, relays):
    expect(int(directory.logged(r"There are now (\d+) accounts")[-1]), len(relays))


def kept_files(relay):
    """The files of its cache, without one that is just being written: certificates come all the time."""
    return sorted(name for name in os.listdir(relay.cache) if not name.startswith("."))


def the_files_of_the_cache_are_for_the_relay_alone(relays):
    for relay in relays:
        expect(os.stat(relay.cache).st_mode & 0o7777, 0o700)
        files = kept_files(relay)
        expect([file.rsplit(".", 1)[1] for file in files], ["der", "pem"])
        for file in files:
            expect(os.stat(os.path.join(relay.cache, file)).st_mode & 0o7777, 0o600)


def the_logs_hold_no_key_at_any_level(relays):
    # That they were asked for everything shows in the first one.
    expect(bool(relays[0].events("handshake_failed")), True)
    for relay in relays:
        # Nor what the directory answers, in which certificates are.
        needles = ["-----BEGIN"]
        for name in kept_files(relay):
            path = os.path.join(relay.cache, name)
            with open(path, "rb") as file:
                content = file.read()
            if name.endswith(".pem"):
                text = content.decode()
                begun = text.index("PRIVATE KEY-----") + len("PRIVATE KEY-----")
                encoded = text[begun:text.index("-----END", begun)].replace("\n", "")
                content = base64.b64decode(encoded)
            # The key itself: an octet string of 32 bytes (RFC 5915) in what surrounds it.
            at = content.index(b"\x02\x01\x01\x04\x20") + 5
            key = content[at:at + 32]
            numbers = ", ".join(str(byte) for byte in key)
            for form in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
                needles.append(form.decode()[:40])
            needles += [key.hex(), key.hex().upper(), numbers]
            # Wherever the key begins in a longer text.
            for shift in range(3):
                needles.append(base64.b64encode(content[shift:])[:-8].decode()[-40:])
        for path in relay.logs:
            with open(path, errors="replace") as file:
                log = file.read()
            for needle in needles:
                if needle in log:
                    raise Failed(f"{needle[:12]}... is in the log of {relay.name}")


def open_pair(relay):
    """A binary and its phone."""
    server = secrets.token_hex(8)
    return relay.upgrade("/v1/server", server), relay.upgrade("/v1/client", server)


def carries(binary, phone, text):
    """Whether what the phone sends arrives at the binary."""
    phone.send(json.dumps(text))
    expect(json.loads(binary.text())["frame"], text)


def expect(seen, wanted):
    if seen != wanted:
        raise Failed(f"{str(seen)[:200]} instead of {str(wanted)[:200]}")


def make_certificates(place):
    """An authority, and pebble's own certificate of it; returns the authority."""
    authority = os.path.join(place, "authority.pem")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
           "-nodes", "-days", "2"]
    key = os.path.join(place, "authority.key")
    for command in (
        new + ["-subj", "/CN=Authority", "-keyout", key, "-out", authority],
        new + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
               "-addext", "basicConstraints=critical,CA:FALSE", "-CA", authority, "-CAkey", key,
               "-keyout", os.path.join(place, "pebble.key"),
               "-out", os.path.join(place, "pebble.pem")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        if done.returncode != 0:
            raise Failed(done.stderr)
    return authority


if __name__ == "__main__":
    main()
