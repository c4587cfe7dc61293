"""What lives inside of a microVM and must come through a suspend, and calls to the outside, which must not."""

import errno
import os
import pty
import socket
import subprocess
import tempfile
import threading
import time

# The guest's end of its link: a connection from it to itself never leaves the microVM.
OWN_ADDRESS = "169.254.100.2"


def tcp_pair(address):
    with socket.create_server((address, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class Keepsakes:
    """One of each; `check` says something through each and what came out at the other end."""

    def __init__(self):
        self.said = 0
        self.listener = socket.create_server(("0.0.0.0", 0))
        self.sockets = {
            "loopback": tcp_pair("127.0.0.1"), "own address": tcp_pair(OWN_ADDRESS), "unix": socket.socketpair()}
        self.files = {name: tempfile.NamedTemporaryFile("w+b", dir=name) for name in ("/dev/shm", "/var/tmp")}
        self.pipe = os.pipe()
        # A terminal with a program on it that answers each line, beside the terminal's own echo.
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(["cat"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.pid = self.child.pid

    def check(self):
        """Every one that failed, and how."""
        wrong = {}
        tries = {name: lambda pair=pair: self.through_socket(*pair) for name, pair in self.sockets.items()}
        tries |= {name: lambda file=file: self.through_file(file) for name, file in self.files.items()}
        tries |= {
            "pipe": self.through_pipe, "terminal": self.through_terminal, "process": self.process,
            "listener": self.through_listener}
        for name, attempt in tries.items():
            self.said += 1
            try:
                attempt()
            except Exception as error:
                wrong[name] = repr(error)
        return wrong

    def words(self):
        return f"word {self.said}\n".encode()

    def through_socket(self, near, far):
        for one, other in ((near, far), (far, near)):
            other.settimeout(5)
            one.sendall(self.words())
            assert other.recv(64) == self.words()

    def through_file(self, file):
        file.seek(0)
        before = file.read()
        assert before == getattr(file, "kept", b""), before
        file.kept = before + self.words()
        file.write(self.words())
        file.flush()

    def through_pipe(self):
        os.write(self.pipe[1], self.words())
        assert os.read(self.pipe[0], 64) == self.words()

    def through_terminal(self):
        os.write(self.master, self.words())
        heard = b""
        while heard.count(b"\n") < 2:
            heard += os.read(self.master, 64)
        assert heard == 2 * self.words().replace(b"\n", b"\r\n"), heard

    def process(self):
        assert self.child.poll() is None, self.child.returncode
        with open(f"/proc/{self.pid}/comm") as name:
            assert name.read() == "cat\n"

    def through_listener(self):
        with socket.create_connection(("127.0.0.1", self.listener.getsockname()[1])) as near:
            far, _ = self.listener.accept()
            with far:
                self.through_socket(near, far)


class Call:
    """A call to the outside: connected, and waiting for words that do not come."""

    def __init__(self, to):
        host, port = to.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.settimeout(None)
        # It was heard: what answers is the other end, not something on the way.
        self.socket.sendall(b"hello\n")
        assert self.socket.recv(64) == b"hello\n"
        self.end = None
        self.at = None
        self.ended = threading.Event()
        threading.Thread(target=self.wait, daemon=True).start()

    def wait(self):
        try:
            end = f"{len(self.socket.recv(1))} bytes"
        except OSError as error:
            end = errno.errorcode[error.errno]
        self.at, self.end = time.time(), end
        self.ended.set()

    def told(self):
        """How the wait ended, and when by the wall clock."""
        return {"end": self.end, "at": self.at}
