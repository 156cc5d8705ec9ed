// The `ws` clients of tests/conformance.py: do what lines of JSON on standard input say, and write what
// happens as lines of JSON. Each line begins with the number of the connection.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.env.WS_PLACE + "/");
const WebSocket = require("ws");
const sockets = new Map();

function open(number, address, headers, options) {
  const socket = new WebSocket(address, {
    headers: { "User-Agent": "conformance", ...headers },
    perMessageDeflate: { threshold: 0 },
    ...options,
  });
  const tell = (...words) => process.stdout.write(JSON.stringify([number, ...words]) + "\n");
  socket.on("open", () => tell("open", socket.extensions));
  socket.on("message", (data, isBinary) => tell(isBinary ? "binary" : "text", data.toString("hex")));
  socket.on("pong", (data) => tell("pong", data.toString("hex")));
  socket.on("error", (error) => tell("error", String(error)));
  socket.on("close", (code, reason) => tell("close", code === 1005 ? null : code, reason.toString()));
  sockets.set(number, socket);
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const words = JSON.parse(line);
  const socket = sockets.get(words.number);
  if (words.open !== undefined) {
    open(words.number, words.open, words.headers, words.options);
  } else if (words.send !== undefined) {
    words.send.forEach((part, place) => {
      const fin = place === words.send.length - 1;
      socket.send(Buffer.from(part, "hex"), { binary: words.binary, fin, compress: false });
    });
  } else if (words.ping !== undefined) {
    socket.ping(Buffer.from(words.ping, "hex"));
  } else if (words.pong !== undefined) {
    socket.pong(Buffer.from(words.pong, "hex"));
  } else if (words.close !== undefined) {
    socket.close(words.close, words.reason);
  } else if (words.drop !== undefined) {
    socket.terminate();
    sockets.delete(words.number);
  }
});
lines.on("close", () => process.exit(0));
