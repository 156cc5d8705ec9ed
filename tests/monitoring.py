#!/usr/bin/env python3
"""Shows the metrics and the status page to those that they are for: Prometheus, its parsers, a browser.

    tests/monitoring.py RELAY [SCREENSHOTS]

RELAY is the program. Screenshots of the status page are left in the folder SCREENSHOTS if it is
given. One line is printed a check; the first that fails ends it. Needs prometheus (with promtool),
chromium, systemd-socket-activate, and the Python package prometheus-client.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

sys.dont_write_bytecode = True
from rig import Failed, WebSocket, free_ports, stop, until

HERE = os.path.dirname(os.path.realpath(__file__))
MONITORING = os.path.join(HERE, "..", "docs", "monitoring")
DEADLINE = 60.0
OPEN_METRICS = "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5"


def check(name):
    """Prints what came of a function's calls in one line each."""
    def wrap(function):
        def checked(*arguments):
            began = time.monotonic()
            try:
                said = function(*arguments)
            except Exception:
                print(f"FAIL  {name}", flush=True)
                raise
            print(f"ok    {name}{': ' + said if said else ''} "
                  f"({time.monotonic() - began:.1f} s)", flush=True)
        return checked
    return wrap


def client(port, path, **headers):
    """A WebSocket client without TLS, upgraded."""
    connected = socket.create_connection(("127.0.0.1", port), DEADLINE)
    upgraded = WebSocket(connected, f"127.0.0.1:{port}", path, **headers)
    if upgraded.status != 101:
        raise Failed(upgraded.head)
    return upgraded


class Relay:
    """A running relay with a metrics listener."""

    def __init__(self, stack, program, *options):
        self.port, self.metrics = free_ports(2)
        command = [program, "--listen", f"127.0.0.1:{self.port}", "--rate-limit", "off",
                   "--metrics-listen", f"127.0.0.1:{self.metrics}", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(stop, self.process)
        until("the relay answers", lambda: self.get("/metrics"))

    def url(self, path="/"):
        return f"http://127.0.0.1:{self.metrics}{path}"

    def get(self, path, accept="*/*"):
        asked = urllib.request.Request(self.url(path), headers={"Accept": accept})
        with urllib.request.urlopen(asked, timeout=DEADLINE) as answer:
            return answer.read().decode()

    def binary(self, server):
        return client(self.port, "/v1/server", X_Pyrycode_Server=server,
                         X_Pyrycode_Version="9.9.9-test", User_Agent="test-binary")

    def phone(self, server):
        return client(self.port, "/v1/client", X_Pyrycode_Server=server,
                         X_Pyrycode_Token="token", User_Agent="test-phone")

    def use(self, server, messages):
        """A binary, a phone, and so many messages to the binary and back."""
        binary, phone = self.binary(server), self.phone(server)
        for number in range(messages):
            phone.send(str(number))
            envelope = json.loads(binary.text())
            binary.send(json.dumps({"conn_id": envelope["conn_id"], "frame": number}))
            if phone.text() != str(number):
                raise Failed("another message came back")
        return binary, phone


# --- Prometheus ---------------------------------------------------------------------------------

@check("promtool check metrics")
def promtool_accepts(relay):
    told = subprocess.run(["promtool", "check", "metrics"], input=relay.get("/metrics"), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Every remark counts, not only errors.
    if told.returncode or told.stdout.strip():
        raise Failed(told.stdout)


@check("the parsers of the Python client")
def the_python_client_parses(relay):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
    from prometheus_client.parser import text_string_to_metric_families as prometheus
    pages = relay.get("/metrics", OPEN_METRICS), relay.get("/metrics")
    if not pages[0].endswith("# EOF\n") or "# EOF" in pages[1]:
        raise Failed("a page has the other's format")
    named = []
    for parse, page in zip((open_metrics, prometheus), pages):
        families = list(parse(page))
        if any(family.type in ("unknown", "untyped") for family in families):
            raise Failed("a metric has no type")
        named.append({(sample.name, tuple(sorted(sample.labels.items())))
                      for family in families for sample in family.samples})
    if named[0] != named[1]:
        raise Failed(f"only in one format: {named[0] ^ named[1]}")
    return f"{len(named[0])} samples"


@check("promtool check rules")
def the_rules_are_valid():
    subprocess.run(["promtool", "check", "rules", "alerts.yml"], cwd=MONITORING, check=True,
                   stdout=subprocess.DEVNULL)


@check("promtool test rules")
def the_rules_pass_their_tests():
    told = subprocess.run(["promtool", "test", "rules", "alerts-test.yml"], cwd=MONITORING,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if told.returncode:
        raise Failed(told.stdout)


def documented_configuration():
    with open(os.path.join(MONITORING, "README.md"), encoding="utf-8") as page:
        blocks = re.findall(r"```yaml\n(.*?)```", page.read(), re.DOTALL)
    if len(blocks) != 1:
        raise Failed("the page has one configuration")
    return blocks[0]


class Prometheus:
    """A real one, set up as the page says; only address and interval are its own."""

    def __init__(self, stack, relay):
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="prometheus-"))
        shutil.copy(os.path.join(MONITORING, "alerts.yml"),
                    os.path.join(place, "pyrycode-relay-alerts.yml"))
        configuration = documented_configuration()
        if "127.0.0.1:9464" not in configuration:
            raise Failed("the configuration names the relay")
        configuration = configuration.replace("127.0.0.1:9464", f"127.0.0.1:{relay.metrics}")
        with open(os.path.join(place, "prometheus.yml"), "w", encoding="utf-8") as file:
            file.write("global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
                       + configuration)
        (self.port,) = free_ports(1)
        log = open(os.path.join(place, "log"), "wb")
        process = subprocess.Popen(
            ["prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log)
        stack.callback(stop, process)

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.load(answer)["data"]

    def value(self, query):
        return float(self.ask("query", query=query)["result"][0]["value"][1])


@check("a Prometheus scrapes and answers")
def prometheus_answers(relay, prometheus):
    until("it scrapes", lambda: prometheus.value('up{job="pyrycode-relay"}') == 1)
    before = relay.get("/status.json")
    _peers = relay.use("prometheus", 5)
    query = 'pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"}'
    until("it has counted the messages", lambda: prometheus.value(query) >= 5)
    until("it sees the connections", lambda: prometheus.value("pyrycode_relay_connected_phones") >= 1)
    [target] = prometheus.ask("targets")["activeTargets"]
    if target["lastError"]:
        raise Failed(target["lastError"])
    return f"version {json.loads(before)['version']}"


@check("it answers every query of the dashboard")
def the_dashboard_is_answered(prometheus):
    with open(os.path.join(MONITORING, "dashboard.json"), encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    silent = []
    for query in queries:
        query = query.replace("$__rate_interval", "30s").replace("$instance", ".+")
        # Where only what happened is drawn there may be nothing.
        if not prometheus.ask("query", query=query)["result"] and not query.endswith("> 0"):
            silent.append(query)
    if silent or len(queries) < 20:
        raise Failed(f"no answer to {silent}")
    return f"{len(queries)} queries"


@check("it knows the alerts, and none fires")
def no_alert_fires(prometheus):
    [group] = until("it has the rules", lambda: prometheus.ask("rules")["groups"])
    until("they are evaluated", lambda: all(
        rule["health"] == "ok" for rule in prometheus.ask("rules")["groups"][0]["rules"]))
    firing = [alert for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]
    if firing:
        raise Failed(str(firing))
    return f"{len(group['rules'])} rules"


# --- systemd ------------------------------------------------------------------------------------

@check("the socket that systemd names metrics")
def systemd_hands_over(program):
    listen, metrics = free_ports(2)
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{metrics}", "--fdname=metrics", program,
               "--listen", f"127.0.0.1:{listen}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        def page(port, path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
                return answer.read().decode()
        until("the metrics answer", lambda: "pyrycode_relay_" in page(metrics, "/metrics"))
        until("the relay listens beside it", lambda: '"ok"' in page(listen, "/healthz"))
    finally:
        stop(process)


# --- the status page ----------------------------------------------------------------------------

class Browser:
    """A headless Chromium, driven over its DevTools protocol."""

    def __init__(self, stack):
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium-",
                                                                ignore_cleanup_errors=True))
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={place}",
                   "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(stop, process)
        port_file = os.path.join(place, "DevToolsActivePort")
        until("the browser is up", lambda: os.path.exists(port_file))
        port = int(until("its port", lambda: open(port_file).read().split("\n"))[0])

        def find_page():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=DEADLINE) as list_:
                return [page for page in json.load(list_) if page["type"] == "page"]
        [page] = until("its page", find_page)
        self.socket = client(port, urllib.parse.urlparse(page["webSocketDebuggerUrl"]).path)
        self.number, self.events = 0, []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.text())
            if message.get("id") == self.number:
                if "error" in message:
                    raise Failed(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def open(self, url):
        """Loads a page; what happened meanwhile is in the events."""
        self.events = []
        self.call("Page.navigate", url=url)
        until("the page is loaded", lambda: self.call(
            "Runtime.evaluate", expression="document.readyState")["result"]["value"] == "complete"
            and self.value("location.href") == url)

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def look(self, width, height, scheme, path):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        if path:
            with open(path, "wb") as file:
                file.write(base64.b64decode(picture["data"]))


@check("the status page in a browser")
def the_page_looks_well(browser, relay, name, pictures):
    browser.open(relay.url())
    seen = []
    for width, height, scheme, view in ((1200, 1500, "light", "light"), (1200, 1500, "dark", "dark"),
                                        (375, 2400, "light", "phone")):
        browser.look(width, height, scheme, pictures and f"{pictures}/{name}-{view}.png")
        wide = browser.value("document.documentElement.scrollWidth")
        if wide > width:
            raise Failed(f"at {width} pixels it is {wide} wide")
        seen.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    if seen[0] == seen[1]:
        raise Failed(f"dark is as light: {seen}")
    complaints = [event for event in browser.events
                  if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown",
                                         "Runtime.consoleAPICalled")]
    if complaints:
        raise Failed(str(complaints))
    asked = [event["params"]["request"]["url"] for event in browser.events
             if event["method"] == "Network.requestWillBeSent"]
    # The page comes anew by itself; the next one is not to be disturbed by that.
    browser.open("about:blank")
    elsewhere = [url for url in asked if url not in (relay.url(), "data:,")]
    if relay.url() not in asked or elsewhere:
        raise Failed(f"it asked for {asked}")
    return f"{name}: light, dark, 375 pixels; {len(set(asked) - {'data:,'})} request"


@check("the same without script")
def works_without_script(browser, relay):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    before = relay.get("/").count("<svg")
    browser.call("Page.navigate", url=relay.url("/?again"))
    tree = until("it is drawn", lambda: [
        node for node in browser.call("Accessibility.getFullAXTree")["nodes"]
        if node.get("role", {}).get("value") in ("image", "img")])
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    if len(tree) != before:
        raise Failed(f"{len(tree)} of {before} charts are there")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    program = os.path.realpath(sys.argv[1])
    pictures = sys.argv[2] if len(sys.argv) == 3 else None
    if pictures:
        os.makedirs(pictures, exist_ok=True)
    with contextlib.ExitStack() as stack:
        fresh = Relay(stack, program)
        browser = Browser(stack)
        the_page_looks_well(browser, fresh, "no-data", pictures)
        relay = Relay(stack, program, "--max-phones", "4")
        peers = [relay.use(f"server-{number}", 20) for number in range(8)]
        promtool_accepts(relay)
        the_python_client_parses(relay)
        the_rules_are_valid()
        the_rules_pass_their_tests()
        prometheus = Prometheus(stack, relay)
        prometheus_answers(relay, prometheus)
        systemd_hands_over(program)
        for _ in range(3):
            relay.phone("nobody")
            with contextlib.suppress(OSError):
                relay_root = f"http://127.0.0.1:{relay.port}/"
                urllib.request.urlopen(relay_root, timeout=DEADLINE)
        load = subprocess.Popen([sys.executable, os.path.realpath(__file__), "--load", str(relay.port)])
        stack.callback(stop, load)
        until("there is load",
              lambda: json.loads(relay.get("/status.json"))["messages_per_second"] > 50)
        the_page_looks_well(browser, relay, "load", pictures)
        works_without_script(browser, relay)
        the_dashboard_is_answered(prometheus)
        no_alert_fires(prometheus)
        del peers


def load(port):
    """Messages for as long as it is let."""
    relay = Relay.__new__(Relay)
    relay.port = port
    while True:
        relay.use("loaded", 500)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        load(int(sys.argv[2]))
    main()
