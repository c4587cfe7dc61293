"""The example's app with doors for the tests: what cannot be seen from outside is asked for here."""

import errno
import hashlib
import http.server
import mmap
import os
import signal
import socket
import stat
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from flask import Blueprint, Response, jsonify, request

from app import app
from keepsakes import Call, Keepsakes

BORN = uuid.uuid4().hex
state = {"count": 0, "ballast": [], "calls": [], "sleeps": []}
if "CALL" in os.environ:
    state["calls"].append(Call(os.environ["CALL"]))
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


@probe.get("/call")
def call():
    """Calls an address outside, if one is given, and waits there; how every call so far went."""
    if "to" in request.args:
        state["calls"].append(Call(request.args["to"]))
    return jsonify(calls=[made.told() for made in state["calls"]])


@probe.get("/keepsakes")
def keepsakes():
    """Makes them the first time; which of them are broken."""
    if "keepsakes" not in state:
        state["keepsakes"] = Keepsakes()
    return jsonify(broken=state["keepsakes"].check(), pid=state["keepsakes"].pid)


@probe.get("/clock")
def clock():
    clocks = {"unix": time.time(), "monotonic": time.monotonic(), "boot": time.clock_gettime(time.CLOCK_BOOTTIME)}
    with open("/sys/devices/system/clocksource/clocksource0/current_clocksource") as source:
        return jsonify(**clocks, source=source.read().strip())


@probe.get("/sleep")
def sleep():
    """Sleeps for so long beside, if asked to; how long every sleep that is over was, by the monotonic clock."""
    def nap(seconds):
        begin = time.monotonic()
        time.sleep(seconds)
        state["sleeps"].append(time.monotonic() - begin)

    if "seconds" in request.args:
        threading.Thread(target=nap, args=[float(request.args["seconds"])], daemon=True).start()
    return jsonify(over=state["sleeps"])


@probe.get("/work")
def work():
    """Two processes that compute for ever, from the first call on; how far each has got."""
    if "work" not in state:
        state["work"] = mmap.mmap(-1, 4096)
        for at in (0, 8):
            if os.fork() == 0:
                done = 0
                while True:
                    done += 1
                    state["work"][at:at + 8] = done.to_bytes(8, "little")
    done = state["work"][:16]
    return jsonify(done=[int.from_bytes(done[:8], "little"), int.from_bytes(done[8:], "little")])


@probe.get("/realtime")
def realtime():
    """How much of the time realtime processes may have, which is changed while a guest is parked."""
    with open("/proc/sys/kernel/sched_rt_runtime_us") as share:
        return jsonify(share=share.read().strip())


@probe.get("/dirty")
def dirty():
    state["ballast"].append(os.urandom(1 << 20) * int(request.args["mib"]))
    return jsonify(mib=sum(map(len, state["ballast"])) >> 20)


@probe.get("/ballast")
def ballast():
    """What all that was written by /dirty comes to."""
    digest = hashlib.sha256()
    for piece in state["ballast"]:
        digest.update(piece)
    return jsonify(sha256=digest.hexdigest())


@probe.get("/sums")
def sums():
    """What memory and files hold, in a few letters."""
    digests = {"memory": hashlib.sha256(b"".join(state["ballast"])).hexdigest()}
    for name, path in (("file", "/var/probe"), ("shm", "/dev/shm/probe")):
        if "write" in request.args:
            with open(path, "wb") as out:
                out.write(os.urandom(256 << 10))
        if os.path.exists(path):
            with open(path, "rb") as kept:
                digests[name] = hashlib.sha256(kept.read()).hexdigest()
    return jsonify(digests)


@probe.get("/spin")
def spin():
    """Works for so long, after the answer."""

    def work(until):
        while time.monotonic() < until:
            sum(range(10000))

    threading.Thread(target=work, args=(time.monotonic() + float(request.args["seconds"]),), daemon=True).start()
    return jsonify()


@probe.get("/think")
def think():
    """Says nothing for so long."""
    time.sleep(float(request.args["seconds"]))
    return jsonify(thought=True)


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


@probe.get("/flood")
def flood():
    """Output without end, nearly."""
    mib = int(request.args["mib"])
    for _ in range(mib * 16):
        os.write(1, b"x" * 65535 + b"\n")
    return jsonify(mib=mib)


@probe.get("/talk")
def talk():
    """Which of these addresses answer when a great deal of nonsense is said to them?"""
    def answers(address):
        host, port = address.rsplit(":", 1)
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
                connection.settimeout(2)
                connection.sendall(b"\xff\xff\xff\xff" + b"nonsense" * 4096)
                return bool(connection.recv(1))
        except OSError:
            return False

    return jsonify(answered=[to for to in request.args.getlist("to") if answers(to)])


def take_all_memory():
    # The kernel is to choose whoever does this, and nobody else.
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    taken = []
    while True:
        # Its own, which the kernel takes back at once from whom it ends; shared memory it does not.
        piece = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Large pages: each small one would cost an emulated fault.
        piece.madvise(mmap.MADV_HUGEPAGE)
        piece[::4096] = b"x" * (len(piece) // 4096)
        taken.append(piece)


@probe.get("/eat")
def eat():
    """A child takes memory until it is ended; asked again, how that was."""
    if "eater" in state:
        pid, status = os.waitpid(state["eater"], os.WNOHANG)
        return jsonify(signal=-os.waitstatus_to_exitcode(status) if pid else None)
    child = os.fork()
    if child == 0:
        take_all_memory()
    state["eater"] = child
    return jsonify(signal=None)


@probe.get("/eat_and_end")
def eat_and_end():
    """Takes memory until there is none: the app itself, or a child of it, with which it ends."""
    def child():
        pid = os.fork()
        if pid == 0:
            take_all_memory()
        _, status = os.waitpid(pid, 0)
        os._exit(3 if os.WIFSIGNALED(status) else 4)

    threading.Timer(0.2, take_all_memory if request.args["who"] == "app" else child).start()
    return jsonify()


@probe.get("/panic")
def panic():
    """Makes the kernel give up, as far as the app may."""
    def crash():
        with open("/proc/sysrq-trigger", "w") as trigger:
            trigger.write("c")

    threading.Timer(0.2, crash).start()
    return jsonify()


@probe.get("/fork")
def fork():
    """Children that do nothing, up to so many."""
    children = []
    try:
        while len(children) < int(request.args["most"]):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return jsonify(children=len(children))


@probe.get("/fill")
def fill():
    """Reserves the disk until there is none; the next write to /var/probe makes room again."""
    size = 0
    with open("/var/probe", "wb") as out:
        for step in (256 << 20, 1 << 20, 4096):
            try:
                while True:
                    os.posix_fallocate(out.fileno(), size, step)
                    size += step
            except OSError as error:
                name = errno.errorcode[error.errno]
    return jsonify(bytes=size, error=name)


@probe.get("/console")
def console():
    """As much on each way to the serial console; how many bytes each took, or why none."""
    took = {}
    # Longer lines /dev/kmsg does not take.
    text = b"x" * 511 + b"\n"
    for name, major, minor in (("console", 5, 1), ("ttyS0", 4, 64), ("kmsg", 1, 11)):
        path = f"/dev/{name}"
        try:
            if not os.path.exists(path):
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
            with open(path, "wb", buffering=0) as out:
                took[name] = sum(out.write(text) for _ in range(2 * int(request.args["kib"])))
        except OSError as error:
            took[name] = errno.errorcode[error.errno]
    return jsonify(took)


@probe.get("/bomb")
def bomb():
    """Processes that make processes, for ever."""
    if os.fork() == 0:
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
    return jsonify()


@probe.get("/scribble")
def scribble():
    """Noise over the beginning of the disk that is mounted, where its file system describes itself."""
    with open("/sys/block/vdb/dev") as numbers:
        major, minor = map(int, numbers.read().split(":"))
    try:
        if not os.path.exists("/dev/scribble"):
            os.mknod("/dev/scribble", stat.S_IFBLK | 0o600, os.makedev(major, minor))
        with open("/dev/scribble", "r+b", buffering=0) as disk:
            wrote = sum(disk.write(os.urandom(1 << 20)) for _ in range(int(request.args["mib"])))
            os.fsync(disk.fileno())
    except OSError as error:
        return jsonify(error=errno.errorcode[error.errno])
    return jsonify(bytes=wrote)


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
