#!/usr/bin/env python3
"""Passes messages through the real Caddy and nginx, set up as docs/raspberry-pi.md says: nginx once as
a proxy of HTTP and once as one of streams, which sends a PROXY header.

    tests/proxies.py RELAY

RELAY is the program. Each proxy gets its snippet as it stands in the document; only addresses,
ports and certificates are its own. One line is printed a check; the first that fails ends it. Needs
caddy, nginx with its stream module, openssl and python3.
"""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
from rig import PING, PONG, Failed, WebSocket, free_ports, start, until

HERE = os.path.dirname(os.path.realpath(__file__))
DOCUMENT = os.path.join(HERE, "..", "docs", "raspberry-pi.md")
NAME = "relay.example.org"
UPSTREAM = "127.0.0.1:8080"
DEADLINE = 30.0
CERTIFICATE = f"/etc/letsencrypt/live/{NAME}/fullchain.pem"
KEY = f"/etc/letsencrypt/live/{NAME}/privkey.pem"
ADDRESSES = (f"127.1.{high}.{low}" for high in range(256) for low in range(1, 255))


def fresh_address():
    """An address of the loopback network that no client has had yet."""
    return next(ADDRESSES)


class Peer(WebSocket):
    """A client over TLS."""

    def __init__(self, proxy, path, source=None, **headers):
        # Every client has an address of its own, as it would have in the internet.
        self.address = source or fresh_address()
        raw = socket.create_connection(("127.0.0.1", proxy.port), DEADLINE, (self.address, 0))
        raw.settimeout(DEADLINE)
        super().__init__(proxy.tls.wrap_socket(raw, server_hostname=NAME), NAME, path, **headers)


class Proxy:
    """A running proxy: its port, and how to trust it."""

    def __init__(self, port, authority):
        self.port = port
        self.relay_log = None
        # The fields about the client that it hands on as the client has written them.
        self.passes = ("Forwarded",)
        self.tls = ssl.create_default_context(cafile=authority)

    def binary(self, server, **more):
        return Peer(self, "/v1/server", X_Pyrycode_Server=server, X_Pyrycode_Version="9.9.9-test",
                    User_Agent="test-binary", **more)

    def phone(self, server, **more):
        return Peer(self, "/v1/client", X_Pyrycode_Server=server, X_Pyrycode_Token="token",
                    X_Pyrycode_Device_Name="T\xe9l\xe9phone", User_Agent="test-phone", **more)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for set_up in (caddy, nginx, nginx_stream):
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="proxies-"))
            # The workers of nginx run as another user.
            os.chmod(place, 0o755)
            name = set_up.__name__
            now = "it starts"
            try:
                options = ["TRUSTED_PROXY"] + ["PROXY_PROTOCOL"] * (set_up is nginx_stream)
                proxy = set_up(stack, place, relay(stack, place, sys.argv[1], options))
                proxy.relay_log = os.path.join(place, "relay.log")
                for check in CHECKS:
                    began = time.monotonic()
                    now = check.__name__.replace("_", " ")
                    check(proxy)
                    print(f"ok    {name}: {now} ({time.monotonic() - began:.1f} s)", flush=True)
            except (Failed, OSError) as error:
                print(f"FAIL  {name}: {now}: {error}")
                for log in ("relay.log", "proxy.log"):
                    with open(os.path.join(place, log), errors="replace") as file:
                        print(f"--- {log}\n" + file.read()[-4000:])
                sys.exit(1)


def the_health_page_answers(proxy):
    peer = Peer(proxy, "/healthz")
    while b"}" not in peer.received:
        peer.receive()
    body = json.loads(peer.received[peer.received.index(b"{"):peer.received.index(b"}") + 1])
    expect(peer.status, 200)
    expect(body["status"], "ok")


def an_upgrade_without_its_headers_is_refused(proxy):
    expect(Peer(proxy, "/v1/client", User_Agent="test-phone").status, 400)


def a_phone_that_finds_no_binary_is_told_so(proxy):
    phone = proxy.phone("nobody")
    expect(phone.status, 101)
    expect(phone.close_frame(), (4404, "no server with that id"))


def messages_of_every_size_pass_both_ways(proxy):
    binary, phone, conn_id = pair(proxy, "sizes")
    for size in (0, 1, 125, 126, 541, 65535, 65536, 87400, 250000):
        frame = json.dumps("x" * size)
        phone.send(frame)
        expect(binary.text(), f'{{"conn_id":"{conn_id}","frame":{frame}}}')
        binary.send(f'{{"conn_id":"{conn_id}","frame":{frame}}}')
        expect(phone.text(), frame)


def a_file_passes_at_once(proxy):
    binary, phone, conn_id = pair(proxy, "file")
    chunk = "x" * 80500
    for number in range(100):
        binary.send(f'{{"conn_id":"{conn_id}","frame":[{number},"{chunk}"]}}')
    for number in range(100):
        expect(phone.text(), f'[{number},"{chunk}"]')


def a_binary_asks_for_a_close_and_the_phone_gets_its_code(proxy):
    binary, phone, conn_id = pair(proxy, "code")
    binary.send(f'{{"conn_id":"{conn_id}","frame":"last","close_code":4401}}')
    expect(phone.text(), '"last"')
    expect(phone.close_frame()[0], 4401)


def a_phone_that_leaves_is_reported(proxy):
    binary, phone, conn_id = pair(proxy, "leaves")
    phone.close()
    expect(json.loads(binary.text())["conn_id"], conn_id)


def a_phone_stays_attached_while_its_binary_is_away(proxy):
    binary, phone, conn_id = pair(proxy, "away")
    binary.close()
    # A message that is still written to the old connection is lost with it, and the phone must begin anew.
    released = r"event=server_released server_id=(away)\b"
    until("the relay sees the binary's end", lambda: found(released, proxy.relay_log))
    phone.send('"meanwhile"')
    binary = proxy.binary("away")
    expect(binary.status, 101)
    expect(binary.text(), f'{{"conn_id":"{conn_id}","frame":"meanwhile"}}')


def a_silent_session_is_kept_by_the_relays_pings(proxy):
    binary, phone, conn_id = pair(proxy, "silent")
    for peer in (binary, phone):
        opcode, payload = peer.any_frame()
        expect(opcode, PING)
        peer.send_frame(PONG, payload)
    phone.send('"still here"')
    expect(binary.text(), f'{{"conn_id":"{conn_id}","frame":"still here"}}')


def the_log_has_the_clients_own_address(proxy):
    # Whatever the client itself says about it.
    made_up = {"X_Forwarded_For": "198.51.100.9"}
    binary = proxy.binary("addressed", **made_up)
    expect_remote(proxy, "server_claimed", "addressed", binary.address)
    phone = proxy.phone("addressed", **made_up)
    expect_remote(proxy, "phone_registered", "addressed", phone.address)


def what_a_client_says_in_the_other_field_hides_nothing(proxy):
    binary = proxy.binary("hidden", Forwarded="for=198.51.100.9")
    if "Forwarded" in proxy.passes:
        # The two fields disagree: one of them is the client's own invention.
        expect(binary.status, 400)
    else:
        expect_remote(proxy, "server_claimed", "hidden", binary.address)


def expect_remote(proxy, event, server, address):
    pattern = rf"event={event} server_id={server} .*remote=(\S+)"
    expect(until("the event is in the log", lambda: found(pattern, proxy.relay_log)), address)


def one_client_is_limited_and_the_others_are_not(proxy):
    greedy = fresh_address()
    statuses = [proxy.phone("nobody", source=greedy).status for _ in range(BURST + 5)]
    expect((statuses[:BURST], 429 in statuses[BURST:]), ([101] * BURST, True))
    expect(proxy.phone("nobody").status, 101)


def two_hundred_clients_have_limits_of_their_own(proxy):
    with contextlib.ExitStack() as stack:
        for number in range(100):
            binary, phone, _ = pair(proxy, f"many-{number}")
            stack.callback(binary.close)
            stack.callback(phone.close)


# What an address may try at once by default.
BURST = 64

CHECKS = (
    the_health_page_answers,
    an_upgrade_without_its_headers_is_refused,
    a_phone_that_finds_no_binary_is_told_so,
    messages_of_every_size_pass_both_ways,
    a_file_passes_at_once,
    a_binary_asks_for_a_close_and_the_phone_gets_its_code,
    a_phone_that_leaves_is_reported,
    a_phone_stays_attached_while_its_binary_is_away,
    a_silent_session_is_kept_by_the_relays_pings,
    the_log_has_the_clients_own_address,
    what_a_client_says_in_the_other_field_hides_nothing,
    one_client_is_limited_and_the_others_are_not,
    two_hundred_clients_have_limits_of_their_own,
)


def pair(proxy, server):
    """A binary, a phone that it knows, and the phone's connection id."""
    binary = proxy.binary(server)
    expect(binary.status, 101)
    phone = proxy.phone(server)
    expect(phone.status, 101)
    phone.send('"hello"')
    conn_id = json.loads(binary.text())["conn_id"]
    binary.prove()
    return binary, phone, conn_id


def expect(seen, wanted):
    if seen != wanted:
        raise Failed(f"{str(seen)[:200]} instead of {str(wanted)[:200]}")


def relay(stack, place, program, options):
    """Starts the relay with these options as the document has them; returns its address."""
    with open(DOCUMENT) as file:
        lines = dict(re.findall(r"^    PYRYCODE_RELAY_([A-Z_]+)=(.*)$", file.read(), re.M))
    log = os.path.join(place, "relay.log")
    start(stack, log, [program, "--listen", "127.0.0.1:0", "--heartbeat-interval", "2s"],
          {f"PYRYCODE_RELAY_{option}": lines[option] for option in options})
    return "127.0.0.1:" + until(
        "the relay listens", lambda: found(r"event=listening address=127\.0\.0\.1:(\d+)", log))


def caddy(stack, place, upstream):
    port, other = free_ports(2)
    # Certificates of its own making, and none of this machine's settings or directories.
    head = ("{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n"
            f"\thttp_port {other}\n\thttps_port {port}\n}}\n")
    config = write(place, "Caddyfile", head + snippet("caddyfile", {UPSTREAM: upstream}))
    start(stack, os.path.join(place, "proxy.log"),
          ["caddy", "run", "--adapter", "caddyfile", "--config", config],
          {"XDG_DATA_HOME": place, "XDG_CONFIG_HOME": place, "HOME": place})
    authority = os.path.join(place, "caddy/pki/authorities/local/root.crt")
    until("Caddy has its certificate", lambda: os.path.exists(authority))
    proxy = Proxy(port, authority)
    until("Caddy answers", lambda: answers(proxy))
    return proxy


def nginx(stack, place, upstream):
    (port,) = free_ports(1)
    certificate, key = own_certificate(place)
    site = snippet("nginx", {
        UPSTREAM: upstream,
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:443 ssl;\n": "",
        CERTIFICATE: certificate,
        KEY: key,
    })
    temporary = "".join(f"    {kind}_temp_path {place}/{kind};\n"
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return run_nginx(stack, place, port, certificate,
                     f"http {{\n    access_log off;\n{temporary}{site}}}\n")


def nginx_stream(stack, place, upstream):
    (port,) = free_ports(1)
    certificate, key = own_certificate(place)
    proxy = run_nginx(stack, place, port, certificate, snippet("nginx-stream", {
        UPSTREAM: upstream,
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        CERTIFICATE: certificate,
        KEY: key,
    }))
    # It does not look at them, and nobody else believes them.
    proxy.passes = ()
    return proxy


def own_certificate(place):
    certificate, key = os.path.join(place, "cert.pem"), os.path.join(place, "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=DEADLINE)
    return certificate, key


def run_nginx(stack, place, port, certificate, blocks):
    # Debian's package loads it from /etc/nginx, which is not read here.
    stream = "/usr/lib/nginx/modules/ngx_stream_module.so"
    load = f"load_module {stream};\n" if blocks.startswith("stream") else ""
    config = write(place, "nginx.conf",
                   f"{load}daemon off;\npid {place}/nginx.pid;\nerror_log stderr;\n"
                   "events {\n    worker_connections 768;\n}\n" + blocks)
    start(stack, os.path.join(place, "proxy.log"), ["nginx", "-e", "stderr", "-c", config], {})
    proxy = Proxy(port, certificate)
    until("nginx answers", lambda: answers(proxy))
    return proxy


def snippet(language, replacements):
    """A block of code of the document, with each of these texts, which it must have, replaced."""
    with open(DOCUMENT) as file:
        (text,) = re.findall(rf"^```{language}\n(.*?)^```$", file.read(), re.M | re.S)
    for old, new in replacements.items():
        if old not in text:
            raise Failed(f"the {language} snippet has no {old!r}")
        text = text.replace(old, new)
    return text


def answers(proxy):
    try:
        return Peer(proxy, "/healthz").status == 200
    except OSError:
        return False


def found(pattern, path):
    with open(path, errors="replace") as file:
        match = re.search(pattern, file.read())
    return match and match.group(1)


def write(place, name, text):
    path = os.path.join(place, name)
    with open(path, "w") as file:
        file.write(text)
    return path


if __name__ == "__main__":
    main()
