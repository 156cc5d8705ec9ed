#!/usr/bin/env python3
"""Sessions of real WebSocket libraries over connections that break.

    tests/sessions.py RELAY [SEED]

RELAY is the program. Daemons and phones use `websockets` for Python and `ws` for Node. A daemon holds a counted
session for each of its three phones: one talks, one listens, one is quiet. A gap on the way to the daemon is
answered with 4421, a gap on the way to a phone leaves it stuck. The daemon's connection runs through a path of
25 ms each way, which ends by a reset, by the end of the stream, by the daemon's close frame, or because a proxy
dies; the daemon dials again and still knows its sessions. Each phone must be in a working session within nine
seconds, none may be told a final close code, and behind a close frame those that did not talk must have stayed.

The clients of one library are one process for all trials of one end. It gets the relay's port and those of the
paths, says `[trial, "open"]`, `[trial, "fault", what]` and `[trial, "done", [dials of each phone]]`, and has a
daemon close in order when it reads a trial's number. Installs the packages as tests/conformance.py does.
"""

import asyncio
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from conformance import PLACE, PYTHON, install

HERE = os.path.dirname(os.path.realpath(__file__))
TRIALS, DELAY, DEADLINE = 12, 0.025, 60.0
ENDS = ("reset", "end of the stream", "close frame", "proxy that dies")
CLIENTS = {
    "websockets": [sys.executable, os.path.join(HERE, "sessions", "clients.py")],
    "ws": ["node", os.path.join(HERE, "sessions", "clients.mjs")],
}


class Path:
    """The daemon's way to the relay: what goes in on one side comes out on the other a moment later."""

    def __init__(self, relay):
        self.relay, self.writers, self.tasks = relay, [], []

    async def open(self):
        self.server = await asyncio.start_server(self.join, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def join(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.relay)
        self.writers = [writer, far_writer]
        self.tasks = [asyncio.ensure_future(self.carry(reader, far_writer)),
                      asyncio.ensure_future(self.carry(far_reader, writer))]

    async def carry(self, reader, writer):
        """In order, each piece a moment after it came."""
        pieces = asyncio.Queue()

        async def take():
            try:
                while piece := await reader.read(1 << 16):
                    pieces.put_nowait((time.monotonic() + DELAY, piece))
            except ConnectionError:
                pass
            pieces.put_nowait((time.monotonic() + DELAY, b""))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - time.monotonic())
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            taking.cancel()

    def cut(self, end):
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            own = writer.get_extra_info("socket")
            if end == "reset":
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if end == "end of the stream":
                own.shutdown(socket.SHUT_WR)
            else:
                writer.transport.abort()


async def trials_of(library, end, relay, chance):
    """All trials of one end; returns what went wrong."""
    paths = [Path(relay) for _ in range(TRIALS)]
    ports = [str(await path.open()) for path in paths]
    environment = os.environ | {"PYTHONPATH": PYTHON, "PYTHONDONTWRITEBYTECODE": "1", "WS_PLACE": PLACE}
    clients = await asyncio.create_subprocess_exec(
        *CLIENTS[library], str(relay), *ports, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    faults, done, begun = [], set(), []

    async def finish(number):
        await asyncio.sleep(2.3 + chance.random())
        if end == "close frame":
            clients.stdin.write(b"%d\n" % number)
        else:
            paths[number].cut(end)

    async def listen():
        opened = set()
        while len(done) < TRIALS:
            line = await clients.stdout.readline()
            if not line:
                faults.append("the clients ended")
                return
            number, what, *more = json.loads(line)
            if what == "open" and number not in opened:
                opened.add(number)
                begun.append(asyncio.ensure_future(finish(number)))
            elif what == "fault":
                faults.append(f"trial {number}: {more[0]}")
            elif what == "done":
                done.add(number)
                if end == "close frame" and more[0][1:] != [1, 1]:
                    faults.append(f"trial {number}: phones that did not talk were closed: {more[0]}")

    try:
        await asyncio.wait_for(listen(), DEADLINE)
    except TimeoutError:
        faults.append(f"{TRIALS - len(done)} of {TRIALS} trials did not come to an end")
    clients.kill()
    await clients.wait()
    return faults


async def run(program, seed):
    relay = await asyncio.create_subprocess_exec(
        program, "--listen", "127.0.0.1:0", "--rate-limit", "off", "--log-level", "info",
        "--max-connections-per-ip", "off", "--probe-timeout", "1s", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    port = None
    while port is None:
        line = (await relay.stderr.readline()).decode()
        listening = re.search(r"event=listening address=127\.0\.0\.1:(\d+)", line)
        port = listening and int(listening.group(1))
    rest = asyncio.ensure_future(relay.stderr.read())
    chance, failed = random.Random(seed), False
    try:
        for library in CLIENTS:
            for end in ENDS:
                faults = await trials_of(library, end, port, chance)
                failed = failed or bool(faults)
                verdict = "FAIL" if faults else "ok  "
                print(f"{verdict}  {library}, {end}: {TRIALS} trials", *faults[:8], sep="\n      ", flush=True)
    finally:
        relay.terminate()
        await relay.wait()
        rest.cancel()
    return failed


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    install()
    seed = int(sys.argv[2]) if len(sys.argv) == 3 else random.randrange(1 << 32)
    print(f"seed {seed}")
    if asyncio.run(run(sys.argv[1], seed)):
        sys.exit(1)


main()
