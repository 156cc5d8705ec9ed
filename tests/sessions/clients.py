"""The daemons and phones of tests/sessions.py over the package `websockets`. See there for what the lines
on standard input and output mean."""

import asyncio
import json
import os
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

PACE, SOON, REDIAL = 0.25, 9.0, 0.3
FINAL = (4401, 4412, 4421, 4426)
RELAY, PATHS = sys.argv[1], sys.argv[2:]


def tell(*words):
    print(json.dumps(words), flush=True)


def dial(port, path, server, name, value):
    return connect(f"ws://127.0.0.1:{port}{path}", compression=None, ping_interval=None, close_timeout=3,
                   user_agent_header="sessions", additional_headers={"X-Pyrycode-Server": server, name: value})


async def again_and_again(one, ended=None):
    """Connects, and connects anew once that has ended."""
    while True:
        code = None
        try:
            code = await one()
        except ConnectionClosed as closed:
            code = closed.rcvd and closed.rcvd.code
        except (OSError, EOFError, TimeoutError):
            pass
        except Exception as error:  # a handshake that the relay or the path has refused
            if "reject" not in str(error) and "HTTP" not in str(error) and "handshake" not in str(error):
                raise
        if ended:
            ended(code)
        await asyncio.sleep(REDIAL)


class Phone:
    def __init__(self, trial, role):
        self.trial, self.role, self.dials = trial, role, 0
        self.task = asyncio.ensure_future(again_and_again(self.connection, self.ended))

    def ended(self, code):
        if code in FINAL:
            self.trial.fault(f"the phone that {self.role} was told {code}")

    async def connection(self):
        self.open = self.stuck = False
        self.sent = self.heard = self.known = self.heard_at = 0
        self.dials += 1
        async with dial(RELAY, "/v1/client", self.trial.server, "X-Pyrycode-Token", "token") as socket:
            await socket.send(json.dumps({"open": self.role == "quiet"}))
            talk = asyncio.ensure_future(self.talk(socket))
            try:
                while True:
                    self.hear(json.loads(await socket.recv()))
            finally:
                talk.cancel()

    async def talk(self, socket):
        while True:
            await asyncio.sleep(PACE * 0.8)
            if self.role == "talks" and self.open:
                self.sent += 1
                await socket.send(json.dumps({"n": self.sent}))

    def hear(self, frame):
        if "opened" in frame:
            self.open = True
            self.trial.opened()
            return
        if frame["n"] != self.heard + 1:
            self.stuck = True
        if not self.stuck:
            self.heard, self.known, self.heard_at = frame["n"], frame["got"], time.monotonic()

    def works(self, since):
        known = self.role != "talks" or (self.known > 0 and self.sent <= self.known + 20)
        return self.open and not self.stuck and self.heard_at > since and known


class Trial:
    def __init__(self, number, path):
        self.number, self.path = number, path
        self.server = f"session-{os.getpid()}-{number}"
        self.sessions, self.connections, self.phones = {}, 0, []
        self.task = asyncio.ensure_future(again_and_again(self.connection))

    def fault(self, text):
        tell(self.number, "fault", text)

    def opened(self):
        if self.connections == 1 and all(phone.open for phone in self.phones):
            tell(self.number, "open")

    async def connection(self):
        async with dial(self.path, "/v1/server", self.server, "X-Pyrycode-Version", "1") as socket:
            self.socket = socket
            self.connections += 1
            if self.connections == 1:
                self.phones = [Phone(self, role) for role in ("talks", "listens", "quiet")]
            else:
                self.judging = asyncio.ensure_future(self.judge(time.monotonic()))
            talk = asyncio.ensure_future(self.talk(socket))
            try:
                while True:
                    answer = self.answer(json.loads(await socket.recv()))
                    if answer:
                        await socket.send(json.dumps(answer))
            finally:
                talk.cancel()

    async def talk(self, socket):
        while True:
            await asyncio.sleep(PACE)
            for conn_id, session in list(self.sessions.items()):
                if session["quiet"] and self.connections == 1:
                    continue
                frame = {"n": session["sent"] + 1, "got": session["got"]}
                # It raises where the close frame has been sent.
                await socket.send(json.dumps({"conn_id": conn_id, "frame": frame}))
                session["sent"] += 1

    def answer(self, envelope):
        conn_id = envelope["conn_id"]
        if "close_code" in envelope:
            self.sessions.pop(conn_id, None)
            return None
        frame = envelope["frame"]
        if "open" in frame:
            self.sessions[conn_id] = {"quiet": frame["open"], "got": 0, "sent": 0}
            return {"conn_id": conn_id, "frame": {"opened": True}}
        session = self.sessions.get(conn_id)
        if session and frame["n"] == session["got"] + 1:
            session["got"] = frame["n"]
            return None
        self.sessions.pop(conn_id, None)
        return {"conn_id": conn_id, "close_code": 4421}

    async def judge(self, since):
        while True:
            await asyncio.sleep(0.05)
            broken = [phone for phone in self.phones if not phone.works(since)]
            if broken and time.monotonic() < since + SOON:
                continue
            for phone in broken:
                state = {name: getattr(phone, name) for name in ("role", "open", "stuck", "sent", "heard", "known")}
                self.fault(f"no working session: {state}")
            tell(self.number, "done", [phone.dials for phone in self.phones])
            return


async def main():
    trials = [Trial(number, path) for number, path in enumerate(PATHS)]
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        await trials[json.loads(line)].socket.close()


asyncio.run(main())
