// The daemons and phones of tests/sessions.py over `ws`. See there for what the lines on standard input and
// output mean.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.env.WS_PLACE + "/");
const WebSocket = require("ws");
const [relay, ...paths] = process.argv.slice(2);
const PACE = 250, SOON = 9000, REDIAL = 300;
const FINAL = [4401, 4412, 4421, 4426];
const tell = (...words) => process.stdout.write(JSON.stringify(words) + "\n");

function connect(port, path, server, headers) {
  return new WebSocket(`ws://127.0.0.1:${port}${path}`, {
    headers: { "User-Agent": "sessions", "X-Pyrycode-Server": server, ...headers },
    perMessageDeflate: false,
  });
}

class Phone {
  constructor(trial, role) {
    Object.assign(this, { trial, role, dials: 0 });
    this.dial();
  }

  dial() {
    Object.assign(this, { open: false, stuck: false, sent: 0, heard: 0, known: 0, heardAt: 0 });
    this.dials += 1;
    const socket = connect(relay, "/v1/client", this.trial.server, { "X-Pyrycode-Token": "token" });
    let pace;
    socket.on("open", () => {
      socket.send(JSON.stringify({ open: this.role === "quiet" }));
      pace = setInterval(() => {
        if (this.role === "talks" && this.open) socket.send(JSON.stringify({ n: ++this.sent }));
      }, PACE * 0.8);
    });
    socket.on("message", (data) => this.hear(JSON.parse(data)));
    socket.on("error", () => {});
    socket.on("close", (code) => {
      clearInterval(pace);
      if (FINAL.includes(code)) this.trial.fault(`the phone that ${this.role} was told ${code}`);
      setTimeout(() => this.dial(), REDIAL);
    });
  }

  hear(frame) {
    if (frame.opened) {
      this.open = true;
      this.trial.opened();
      return;
    }
    if (frame.n !== this.heard + 1) this.stuck = true;
    if (this.stuck) return;
    this.heard = frame.n;
    this.known = frame.got;
    this.heardAt = Date.now();
  }

  works(since) {
    const known = this.role !== "talks" || (this.known > 0 && this.sent <= this.known + 20);
    return this.open && !this.stuck && this.heardAt > since && known;
  }
}

class Trial {
  constructor(number, path) {
    this.number = number;
    this.path = path;
    this.server = `session-${process.pid}-${number}`;
    this.sessions = new Map();
    this.connections = 0;
    this.serve();
  }

  fault(text) {
    tell(this.number, "fault", text);
  }

  opened() {
    if (this.connections === 1 && this.phones.every((phone) => phone.open)) tell(this.number, "open");
  }

  serve() {
    const socket = connect(this.path, "/v1/server", this.server, { "X-Pyrycode-Version": "1" });
    this.socket = socket;
    let pace;
    socket.on("open", () => {
      this.connections += 1;
      if (this.connections === 1) {
        this.phones = ["talks", "listens", "quiet"].map((role) => new Phone(this, role));
      } else {
        this.judge(Date.now());
      }
      pace = setInterval(() => {
        // What is sent behind the close frame is dropped.
        if (socket.readyState !== WebSocket.OPEN) return;
        for (const [conn_id, session] of this.sessions) {
          if (session.quiet && this.connections === 1) continue;
          const frame = { n: ++session.sent, got: session.got };
          socket.send(JSON.stringify({ conn_id, frame }));
        }
      }, PACE);
    });
    socket.on("message", (data) => {
      const answer = this.answer(JSON.parse(data));
      if (answer) socket.send(JSON.stringify(answer));
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      clearInterval(pace);
      setTimeout(() => this.serve(), REDIAL);
    });
  }

  answer({ conn_id, frame, close_code }) {
    if (close_code !== undefined) {
      this.sessions.delete(conn_id);
      return null;
    }
    if (frame.open !== undefined) {
      this.sessions.set(conn_id, { quiet: frame.open, got: 0, sent: 0 });
      return { conn_id, frame: { opened: true } };
    }
    const session = this.sessions.get(conn_id);
    if (session && frame.n === session.got + 1) {
      session.got = frame.n;
      return null;
    }
    this.sessions.delete(conn_id);
    return { conn_id, close_code: 4421 };
  }

  judge(since) {
    const asked = setInterval(() => {
      const broken = this.phones.filter((phone) => !phone.works(since));
      if (broken.length > 0 && Date.now() < since + SOON) return;
      clearInterval(asked);
      for (const { role, open, stuck, sent, heard, known } of broken) {
        this.fault(`no working session: ${JSON.stringify({ role, open, stuck, sent, heard, known })}`);
      }
      tell(this.number, "done", this.phones.map((phone) => phone.dials));
    }, 50);
  }
}

const trials = paths.map((path, number) => new Trial(number, path));
createInterface({ input: process.stdin })
  .on("line", (line) => trials[JSON.parse(line)].socket.close(1000))
  .on("close", () => process.exit(0));
