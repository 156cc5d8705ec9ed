#!/usr/bin/env python3
"""Breaks the relay by hand, one fault at a time, and has the simulation find it.

    tests/simulation/faults.py [--only N[,N]] [--seeds N]

Prints a row for each fault: how many seeds it took, and what the judge said. A fault that `mixed` does not
find is tried with `household`. Works on a copy of the tree below target/. Ends with 1 if too few were found,
and with 2 if a fault does not fit the code any more: then it is to be written anew.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PLACE = os.path.join(ROOT, "target", "faults")
TREE = os.path.join(PLACE, "tree")
MUST_BE_FOUND = 26
DAYS = 60
# Seconds; the first build takes all dependencies along.
BUILD_TIME, MIXED_TIME, HOUSEHOLD_TIME = 1800, 400, 180
# How much of what the judge said is shown.
WIDTH = 110

LANE, OUTBOX = "src/queue/lane.rs", "src/queue/outbox.rs"
SLOT, SEAT, REGISTRY = "src/registry/slot.rs", "src/registry/seat.rs", "src/registry/mod.rs"
LINK, READING = "src/connection/link.rs", "src/connection/link/reading.rs"
PHONE, CONNECTION = "src/connection/phone.rs", "src/connection/mod.rs"

# What is broken, and how: the file, a text that is there once, and what takes its place.
FAULTS = [
    (
        "one queued message is lost at every claim",
        [(LANE, """    pub fn begin_proofs_anew(&self) {
""", """    pub fn begin_proofs_anew(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(entry) = state.entries.pop_front() {
            self.refund(&mut state.held, &entry);
        }
        drop(state);
""")],
    ),
    (
        "two of four queued messages are swapped",
        [(LANE, """        self.entries.push_back(entry);
        if let Some(waker)""", """        self.entries.push_back(entry);
        if self.entries.iter().count() == 4 {
            let mut all: Vec<_> = std::mem::take(&mut self.entries).into_iter().collect();
            all.swap(2, 3);
            all.into_iter().for_each(|entry| self.entries.push_back(entry));
        }
        if let Some(waker)""")],
    ),
    (
        "the frame in progress is sent again after an orderly end",
        [(REGISTRY, "if manner != Parting::Silent => outbox.part(),",
          "if manner != Parting::Silent => outbox.detach(),")],
    ),
    (
        "one permit in eight is leaked",
        [("src/admission/permits.rs", """        let permits = &self.permits;
        if let Some(sources)""", """        let permits = &self.permits;
        if permits.turnover.get() % 8 == 7 {
            return permits.turn_over();
        }
        if let Some(sources)""")],
    ),
    (
        "a stale timer releases a slot that was claimed since",
        [(REGISTRY, "                map.expiries.remove(&(*deadline, *serial));\n",
          "                let _ = (deadline, serial);\n")],
    ),
    (
        "phones outlive silence",
        [(SLOT, "            Parting::Silent | Parting::Severed => false,\n",
          "            Parting::Severed => false,\n"),
         (SLOT, "            Parting::Broken => self.lane.is_proven(&phone.sender) && was_quiet(),",
          "            Parting::Broken | Parting::Silent => {\n"
          "                self.lane.is_proven(&phone.sender) && was_quiet()\n            }")],
    ),
    (
        "4421 reaches a phone that outlived its daemon's connection",
        [(SLOT, "            phone.outlived |= !phone.unserved;\n", "")],
    ),
    (
        "one close notice in eight is forgotten",
        [(SLOT, "if remains != Remains::Asked && (sender",
          "if remains != Remains::Asked && fastrand::u8(..8) > 0 && (sender")],
    ),
    (
        "a directive overtakes what is queued",
        [(SLOT, "phone.outbox.close(close, Manner::Orderly);",
          "phone.outbox.close(close, Manner::Abort);")],
    ),
    (
        "a phone's message is trimmed",
        [(PHONE, "self.prefix.wrap(text)", "self.prefix.wrap(text.trim())")],
    ),
    (
        "a queued message is forgotten when it was in progress at an end",
        [(LANE, "        if front.sender.as_ref().is_some_and(|sender| sender.is_dropped.get()) {\n",
          "        if front.kind == Kind::Message {\n")],
    ),
    (
        "64 KiB of every phone are kept",
        [(PHONE, "    let peer = Phone {\n", """    let mut ahead = Charge::new(Rc::clone(seat.sender().account()));
    ahead.set(64 * 1024);
    std::mem::forget(ahead);
    let peer = Phone {
""")],
    ),
    (
        "the descriptor of every refused connection is leaked",
        [(CONNECTION, """relay.config.write_timeout, &relay.scratch).await;
    None""", """relay.config.write_timeout, &relay.scratch).await;
    std::mem::forget(io);
    None""")],
    ),
    (
        "a frame goes to any phone of the slot",
        [(SLOT, """        let Some(phone) = self.phones.get_mut(&key) else { return Routed::Unknown };
        let frame = match""", """        let any = self.phones.keys().copied().min().unwrap_or(key);
        let Some(phone) = self.phones.get_mut(&any) else { return Routed::Unknown };
        let frame = match""")],
    ),
    (
        "a pong has another payload",
        [(OUTBOX, "Frame::pong(&payload)", "Frame::pong(&payload[payload.len() / 2..])")],
    ),
    (
        "a slot is released at half its window",
        [(REGISTRY, "let deadline = now + self.rules.grace;",
          "let deadline = now + self.rules.grace / 2;")],
    ),
    (
        "a phone that closed first is let go without waiting for its end",
        [(LINK, "self.phase = match self.peer_done {",
          "self.phase = match self.peer_done || matches!(ended, Ended::ByPeer(_)) {")],
    ),
    (
        "a live holder's answer to a probe does not count",
        [("src/queue/probe.rs", "        if self.outcome.get().is_none() {",
          "        if self.outcome.get().is_none() && outcome != Outcome::Answered {")],
    ),
    (
        "a stale confirmation timer closes phones of a confirmed claim",
        [(SLOT, """        self.confirmation = None;
        for phone in self.phones.values_mut() {
            phone.unconfirmed = false;""", """        for phone in self.phones.values_mut() {
            phone.unconfirmed = false;"""),
         (SLOT, "self.close_phones(|_, phone| phone.unconfirmed)",
          "self.close_phones(|_, phone| phone.outlived)")],
    ),
    (
        "the wake-up of the reaper is lost when a window begins",
        [(REGISTRY, """            map.expiries.insert((deadline, serial), server.clone());
            if let Some(reaper) = map.reaper.take() {
                reaper.wake();
            }
""", """            map.expiries.insert((deadline, serial), server.clone());
""")],
    ),
    (
        "a message that is queued to a phone does not wake its link",
        [(LANE, "        state.push(Entry { bytes: frame.into_bytes(), sender: None, kind: Kind::Message });\n",
          """        let writer = state.writer.take();
        state.push(Entry { bytes: frame.into_bytes(), sender: None, kind: Kind::Message });
        state.writer = writer;
""")],
    ),
    (
        "what a proof's ping costs is never given back to the ledger",
        [(LANE, """                self.refund(&mut state.held, &entry);
                if let Some(sender)""", """                if entry.kind != Kind::Proof {
                    self.refund(&mut state.held, &entry);
                }
                if let Some(sender)""")],
    ),
    (
        "a phone is kept at a reclaim that has proved nothing",
        [(SLOT, "Parting::Broken => self.lane.is_proven(&phone.sender) && was_quiet(),",
          "Parting::Broken => was_quiet(),")],
    ),
    (
        "the window ends 20 ms early",
        [(REGISTRY, "let deadline = now + self.rules.grace;",
          "let deadline = now + self.rules.grace - Duration::from_millis(20);")],
    ),
    (
        "a heartbeat's ping comes after twice its interval",
        [("src/websocket/heartbeat.rs", "            None => self.heard + self.interval,",
          "            None => self.heard + 2 * self.interval,")],
    ),
    (
        "a phone that was held back is never read again",
        [(READING, "        if self.phase.is_undecided() && !self.resume(cx, now) {",
          "        if matches!(self.phase, Phase::Held { .. }) {")],
    ),
    (
        "phones that are not confirmed within 5 s stay",
        [(REGISTRY, """            map.confirmations.insert((deadline, serial), server.clone());
            if let""", """            let _ = deadline;
            if let""")],
    ),
    (
        "a message that was begun on a connection that broke is not sent again on the next",
        [(SEAT, """        // A message that it did not finish is the next connection's.
        self.outbox.detach();
""", "")],
    ),
    (
        "the relay waits for only half a second after its close",
        [(LINK, "until: now + LINGER_TIME }", "until: now + LINGER_TIME / 4 }")],
    ),
    (
        "a phone's queue is full at half its bound",
        [(LANE, """        let cost = cost(frame.len());
        if state.held + cost > self.limit {
            return Err(frame);
        }
        self.account""", """        let cost = cost(frame.len());
        if state.held + cost > self.limit / 2 {
            return Err(frame);
        }
        self.account""")],
    ),
]


class Unfit(Exception):
    """A fault does not fit the code."""


def tracked():
    """The files of the work tree, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name})


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def copy_tree():
    """Brings the copy up to date. What is the same keeps its time, so that little is built anew."""
    wanted = tracked()
    for name in wanted:
        source, copy = os.path.join(ROOT, name), os.path.join(TREE, name)
        if not os.path.isfile(source):
            continue
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        with open(source, "rb") as file:
            content = file.read()
        if os.path.isfile(copy):
            with open(copy, "rb") as file:
                if file.read() == content:
                    continue
        shutil.copyfile(source, copy)
        shutil.copymode(source, copy)
    known = set(wanted)
    for folder, _, names in os.walk(TREE):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, TREE) not in known:
                os.remove(path)


def broken(edits):
    """The files of a fault, by their names, with the fault in."""
    texts = {}
    for name, old, new in edits:
        text = texts.get(name) or read(os.path.join(ROOT, name))
        count = text.count(old)
        if count != 1:
            raise Unfit(f"{name} has this {count} times:\n{old}")
        texts[name] = text.replace(old, new)
    return texts


def run(command, seconds, **more):
    """Runs a command; its status, `None` if it took too long, and what it printed."""
    environment = {**os.environ, **{name: str(value) for name, value in more.items()}}
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def build():
    """Builds the simulation; its program."""
    command = ["cargo", "test", "--test", "simulation", "--no-run"]
    status, output = run(
        command, BUILD_TIME, CARGO_TARGET_DIR=os.path.join(PLACE, "target"), CARGO_INCREMENTAL=1,
        CARGO_PROFILE_TEST_OPT_LEVEL=2, CARGO_PROFILE_DEV_OPT_LEVEL=2, CARGO_TERM_COLOR="never",
    )
    program = re.search(r"^\s*Executable .*\((.*)\)$", output, re.MULTILINE)
    if status != 0 or not program:
        raise Unfit(f"it does not compile:\n{output}")
    return os.path.join(TREE, program[1])


def said(output):
    """What the judge said of which seed: the first line of a panic of a test."""
    panics = re.findall(r"panicked at (?:tests/simulation/\S+):\n(.*)", output)
    for line in panics:
        found = re.match(r"seed (\d+)(?:, \d+ days)?: (.*)", line)
        if found:
            return int(found[1]), found[2]
    lines = panics or re.findall(r"panicked at \S+:\n(.*)", output)
    return None, lines[-1] if lines else output.strip().splitlines()[-1]


def seek(program, seeds):
    """How the fault is found, if it is: after how many seeds or where, and what was said."""
    mixed = [program, "mixed", "--nocapture"]
    household = [program, "household", "--nocapture"]
    status, output = run(mixed, MIXED_TIME, RELAY_SIMULATION_SEED=1, RELAY_SIMULATION_SEEDS=seeds)
    if status is None:
        return "timeout", "it hangs, or the failure takes too long to be made smaller"
    if status != 0:
        seed, line = said(output)
        return "?" if seed is None else str(seed), line
    status, output = run(
        household, HOUSEHOLD_TIME, RELAY_SIMULATION_SEED=1, RELAY_SIMULATION_DAYS=DAYS
    )
    if status is None:
        return "household", "timeout"
    if status != 0:
        return "household", said(output)[1]
    return None, ""


def shortened(line):
    line = " ".join(line.split())
    # The numbers of a message say nothing to whoever reads a table.
    line = re.sub(r"Text \{[^}]*\}", "a message", line).replace("|", "/")
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def main():
    parser = argparse.ArgumentParser(description="Breaks the relay and has the simulation find it.")
    parser.add_argument("--only", metavar="N[,N]", help="these faults alone, counted from 1")
    parser.add_argument("--seeds", metavar="N", type=int, default=2000, help="at most; 2000")
    options = parser.parse_args()
    chosen = range(1, len(FAULTS) + 1)
    if options.only:
        chosen = [int(number) for number in options.only.split(",")]
        if not all(1 <= number <= len(FAULTS) for number in chosen):
            parser.error(f"there are faults 1 to {len(FAULTS)}")
    try:
        faults = [(number, *FAULTS[number - 1]) for number in chosen]
        # Before the first build takes its time.
        faults = [(number, title, broken(edits)) for number, title, edits in faults]
        copy_tree()
        # What fails without any fault finds none.
        where, line = seek(build(), 100)
        if where:
            raise Unfit(f"the simulation fails without a fault: {where}: {line}")
        print("| # | fault | seeds needed | what the judge said |\n|---|---|---|---|", flush=True)
        found = 0
        for number, title, texts in faults:
            for name, text in texts.items():
                write(os.path.join(TREE, name), text)
            try:
                where, line = seek(build(), options.seeds)
            except Unfit as unfit:
                raise Unfit(f"fault {number}, {title}: {unfit}") from None
            finally:
                for name in texts:
                    write(os.path.join(TREE, name), read(os.path.join(ROOT, name)))
            found += where is not None
            print(f"| {number} | {title} | {where or 'not found'} | {shortened(line)} |", flush=True)
    except Unfit as unfit:
        print(f"faults: {unfit}", file=sys.stderr)
        return 2
    print(f"{found} of {len(faults)} faults were found")
    return 1 if found < MUST_BE_FOUND * len(faults) // len(FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
