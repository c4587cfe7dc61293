"""A counter that lives in memory, to show that a microVM keeps its memory, its disk and its identity."""

import itertools
import os
import secrets
import time
from collections import Counter

from flask import Flask, Response, jsonify, request

app = Flask(__name__)
started_at = time.time()
visits = itertools.count(1)
hook_calls = Counter()
last_run = {}


@app.get("/")
def count():
    return jsonify(counter=next(visits), pid=os.getpid(), started_at=started_at, now=time.time())


@app.get("/env")
def env():
    return jsonify(dict(os.environ))


@app.get("/random")
def random():
    return jsonify(random=secrets.token_hex(16))


@app.route("/file", methods=["GET", "PUT"])
def file():
    """PUT /file?path=/data/x writes the body there, GET /file?path=/data/x reads it."""
    path = request.args.get("path", "/tmp/file")
    if request.method == "GET":
        if not os.path.isfile(path):
            return jsonify(error=f"there is no file {path}"), 404
        with open(path, "rb") as stored:
            return Response(stored.read(), mimetype="application/octet-stream")
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    with open(path, "wb") as stored:
        stored.write(request.get_data())
    return jsonify(path=path, bytes=os.path.getsize(path))


@app.get("/slow")
def slow():
    """Sends a line at a time: GET /slow?lines=5&delay=0.5"""
    lines, delay = request.args.get("lines", 5, int), request.args.get("delay", 0.5, float)

    def body():
        for line in range(1, lines + 1):
            yield f"line {line} of {lines}\n"
            time.sleep(delay)

    return Response(body(), mimetype="text/plain")


@app.post("/echo")
def echo():
    """Sends the body back while it arrives."""
    body, kind = request.stream, request.content_type or "application/octet-stream"
    return Response(iter(lambda: body.read(64 * 1024), b""), content_type=kind)


@app.get("/hooks")
def hooks():
    return jsonify(calls=hook_calls, last_run=last_run)


@app.post("/aws/lambda-microvms/runtime/v1/<hook>")
def hook(hook):
    """Called by Pilotlight at the turning points of a microVM's life; 200 means: go on."""
    if hook not in ("ready", "validate", "run", "resume", "suspend", "terminate"):
        return jsonify(error=f"there is no hook {hook}"), 404
    hook_calls[hook] += 1
    if hook == "run":
        last_run.update(request.get_json(silent=True) or {})
    print(f"hook {hook}", flush=True)
    return jsonify(hook=hook, calls=hook_calls[hook])


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=8080, threaded=True)
