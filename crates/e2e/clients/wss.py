"""WebSockets by Python's `websockets`, over TLS that one thread may read while another writes.

Python's `ssl` lets both into OpenSSL at once, which is not made for it: now and then, while one reads the session tickets that
follow the handshake, what the other writes is lost without an error (https://github.com/python/cpython/issues/143756).
"""

import select
import socket
import ssl
import threading

import websockets.sync.client


class Tls:
    def __init__(self, plain, context, host):
        self.socket = context.wrap_socket(plain, server_hostname=host)
        self.socket.setblocking(False)
        self.lock = threading.Lock()

    def _when_ready(self, step):
        while True:
            reads, writes = [], []
            try:
                with self.lock:
                    return step()
            except ssl.SSLWantReadError:
                reads.append(self.socket)
            except ssl.SSLWantWriteError:
                writes.append(self.socket)
            # Not for ever, as nothing tells this when the socket is closed.
            select.select(reads, writes, [], 0.2)

    def recv(self, size):
        return self._when_ready(lambda: self.socket.recv(size))

    def sendall(self, data):
        left = memoryview(data)
        while left:
            left = left[self._when_ready(lambda: self.socket.send(left)):]

    def settimeout(self, seconds):
        """The socket stays as it is; the waiting is done here."""

    def __getattr__(self, name):
        return getattr(self.socket, name)


def connect(endpoint, ca_file, path="/", **more):
    """A WebSocket to an endpoint, HOST:PORT, on this machine."""
    host, port = endpoint.rsplit(":", 1)
    tls = Tls(socket.create_connection(("127.0.0.1", int(port))), ssl.create_default_context(cafile=ca_file), host)
    # The URL names no TLS because the library has none to add.
    return websockets.sync.client.connect(f"ws://{endpoint}{path}", sock=tls, compression=None, open_timeout=90, **more)
