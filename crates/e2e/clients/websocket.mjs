// The usual WebSocket client of Node.js against an endpoint: node websocket.mjs DIRECTORY_WITH_NODE_MODULES HOST:PORT TOKEN

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";

const [modules, endpoint, token] = process.argv.slice(2);
const WebSocket = createRequire(`${modules}/`)("ws");
const url = `wss://${endpoint}/`;

async function opened(offers, headers) {
  const socket = new WebSocket(url, offers, { headers, handshakeTimeout: 60_000 });
  await once(socket, "open");
  return socket;
}

async function answered(socket, message) {
  const heard = once(socket, "message");
  socket.send(message);
  const [data, isBinary] = await heard;
  return isBinary ? data : data.toString();
}

const marker = "lambda-microvms";
const byOffer = await opened([marker, `${marker}.authentication.${token}`, "chat"]);
assert.equal(byOffer.protocol, "chat");
const byHeader = await opened([], { "X-aws-proxy-auth": token, "X-aws-proxy-port": "8080" });
assert.equal(byHeader.protocol, "");

for (const socket of [byOffer, byHeader]) {
  assert.equal(await answered(socket, "text"), "text");
  // Compressed, as both sides offer it, which is no business of the edge's.
  assert.match(socket.extensions, /permessage-deflate/);
  const large = Buffer.alloc(900_000, "compressible ");
  assert.deepEqual(await answered(socket, large), large);
  const pong = once(socket, "pong");
  socket.ping("are you there?");
  assert.equal((await pong)[0].toString(), "are you there?");
  const closed = once(socket, "close");
  socket.close(1000, "enough");
  assert.equal((await closed)[0], 1000);
}

const refused = new WebSocket(url, [], { headers: { "X-aws-proxy-auth": "nonsense" } });
const [, answer] = await once(refused, "unexpected-response");
assert.equal(answer.statusCode, 403);
answer.resume();
await once(answer, "end");
refused.on("error", () => {});
refused.terminate();
console.log("all heard");
