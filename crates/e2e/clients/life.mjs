// A life with AWS's own SDK for JavaScript: node life.mjs DIRECTORY_WITH_NODE_MODULES CODE_ARTIFACT
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

const [modules, artifact] = process.argv.slice(2);
const sdk = createRequire(`${modules}/`)("@aws-sdk/client-lambda-microvms");
// As a user makes one: everything comes from the environment.
const client = new sdk.LambdaMicrovmsClient({});
const send = (operation, input) => client.send(new sdk[`${operation}Command`](input));

async function until(what, ask) {
  for (const end = Date.now() + 30_000; Date.now() < end; await pause(20)) {
    const answer = await ask();
    if (answer) return answer;
  }
  assert.fail(`waited in vain until ${what}`);
}

async function refused(kind, status, promise) {
  const error = await promise.then((answer) => assert.fail(`answered ${JSON.stringify(answer)}`), (error) => error);
  assert.ok(error instanceof sdk[kind], `${error?.name}: ${error?.message} is no ${kind}`);
  assert.equal(error.$metadata.httpStatusCode, status);
  assert.ok(error.$metadata.requestId, "no request id");
  return error;
}

const name = `javascript-${process.pid}`;
const created = await send("CreateMicrovmImage", {
  name,
  baseImageArn: "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
  buildRoleArn: "arn:aws:iam::000000000000:role/build",
  codeArtifact: { uri: artifact },
  tags: { made: "by javascript" },
});
assert.equal(created.state, "CREATING");
assert.ok(created.createdAt instanceof Date && Math.abs(created.createdAt - Date.now()) < 60_000, created.createdAt);
const imageIdentifier = created.imageArn;
const state = async (of) => (await send("GetMicrovmImage", { imageIdentifier: of })).state;
await until("it is CREATED", async () => (await state(imageIdentifier)) === "CREATED");

const run = await send("RunMicrovm", { imageIdentifier });
const microvm = { microvmIdentifier: run.microvmId };
const reach = (wanted) => until(wanted, async () => (await send("GetMicrovm", microvm)).state === wanted);
await reach("RUNNING");
const ids = [];
for await (const page of sdk.paginateListMicrovms({ client, pageSize: 1 }, { imageIdentifier })) {
  ids.push(...page.items.map((item) => item.microvmId));
}
assert.deepEqual(ids, [run.microvmId]);
const { authToken } = await send("CreateMicrovmAuthToken", {
  ...microvm, expirationInMinutes: 5, allowedPorts: [{ port: 8080 }],
});
assert.deepEqual(Object.keys(authToken), ["X-aws-proxy-auth"]);
await send("SuspendMicrovm", microvm);
await reach("SUSPENDED");
await send("ResumeMicrovm", microvm);
await reach("RUNNING");
await refused("ValidationException", 400, send("DeleteMicrovmImage", { imageIdentifier }));
await send("TerminateMicrovm", microvm);
await reach("TERMINATED");
const ended = await refused("ValidationException", 400, send("SuspendMicrovm", microvm));
assert.equal(ended.message, `The MicroVM ${run.microvmId} has been terminated and its state cannot be changed.`);
const nothing = "microvm-00000000-0000-4000-8000-000000000000";
const missing = await refused("ResourceNotFoundException", 404, send("GetMicrovm", { microvmIdentifier: nothing }));
assert.equal(missing.message, `MicroVM not found: ${nothing}`);
await send("DeleteMicrovmImage", { imageIdentifier });
await until("it is gone", () =>
  state(imageIdentifier).then(() => false, (error) => error instanceof sdk.ResourceNotFoundException));
console.log("lived");
