// A greeting, and how often it was given: the count lives in memory and survives suspension.
const http = require("node:http");

const startedAt = new Date().toISOString();
let counter = 0;

const server = http.createServer((request, response) => {
  const body = { hello: request.url, counter: ++counter, pid: process.pid, startedAt };
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(body) + "\n");
});

server.listen(8080, "0.0.0.0", () => console.log("listening on port 8080"));
