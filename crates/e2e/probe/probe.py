"""The example's app with doors for the tests: what cannot be seen from outside is asked for here."""

import http.server
import os
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from flask import Blueprint, Response, jsonify, request

from app import app

BORN = uuid.uuid4().hex
state = {"count": 0, "ballast": []}
counting = threading.Lock()
probe = Blueprint("probe", __name__, url_prefix="/probe")


@probe.get("/born")
def born():
    """Made when the process started: the same in every microVM that wakes from this start."""
    return jsonify(born=BORN, pid=os.getpid())


@probe.get("/count")
def count():
    with counting:
        state["count"] += 1
        return jsonify(count=state["count"])


@probe.get("/file")
def file():
    if "text" in request.args:
        with open("/var/probe", "w") as out:
            out.write(request.args["text"])
    if not os.path.exists("/var/probe"):
        return jsonify(text=None)
    with open("/var/probe") as kept:
        return jsonify(text=kept.read())


@probe.get("/random")
def random():
    return jsonify(random=os.urandom(32).hex())


@probe.get("/connect")
def connect():
    """Which of these addresses, host:port, can be connected to from here."""

    def reached(address):
        host, port = address.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return True
        except OSError:
            return False

    addresses = request.args.getlist("to")
    with ThreadPoolExecutor(len(addresses)) as pool:
        return jsonify(reached=[to for to, yes in zip(addresses, pool.map(reached, addresses)) if yes])


@probe.get("/clock")
def clock():
    return jsonify(unix=time.time())


@probe.get("/dirty")
def dirty():
    state["ballast"].append(os.urandom(1 << 20) * int(request.args["mib"]))
    return jsonify(mib=sum(map(len, state["ballast"])) >> 20)


@probe.get("/machine")
def machine():
    with open("/proc/meminfo") as lines:
        memory = int(next(line for line in lines if line.startswith("MemTotal")).split()[1])
    disk = os.statvfs("/")
    return jsonify(
        memory_kib=memory, cpus=os.cpu_count(), disk_bytes=disk.f_blocks * disk.f_frsize, env=dict(os.environ))


@probe.route("/echo", methods=["GET", "POST"])
def echo():
    return jsonify(
        headers={name.lower(): value for name, value in request.headers}, peer=request.remote_addr,
        body=request.get_data(as_text=True))


@probe.get("/stream")
def stream():
    """Three pieces, a second apart."""
    def pieces():
        for index in range(3):
            yield f"piece {index}\n"
            time.sleep(1)

    return Response(pieces(), mimetype="text/plain")


@probe.get("/exit")
def leave():
    code = int(request.args["code"])
    threading.Timer(0.2, lambda: os._exit(code)).start()
    return jsonify(code=code)


class Loopback(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"peer {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


loopback = http.server.ThreadingHTTPServer(("127.0.0.1", 9001), Loopback)
threading.Thread(target=loopback.serve_forever, daemon=True).start()
app.register_blueprint(probe)
app.run(host="0.0.0.0", port=8080, threaded=True)
