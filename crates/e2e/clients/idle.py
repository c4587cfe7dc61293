"""Connections that do nothing: idle.py HOST PORT CA TOKEN COUNT (http|websocket).

Opens them, asks once on each (for a page, or to change the protocol), says "open", and waits for a line. Then asks once more
on each, which shows that all are alive, says "alive", and waits for the end of its input.
"""

import resource
import ssl
import socket
import sys

host, port, ca, token, count, kind = sys.argv[1:]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
context = ssl.create_default_context(cafile=ca)
request = f"GET / HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\n"
if kind == "websocket":
    upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    first, status, second = request + upgrade, b" 101 ", b"ping"
else:
    first, status, second = request, b" 200 ", (request + "\r\n").encode()


def answer(connection):
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(65536)
        if not more:
            raise EOFError(head)
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    if status not in head.split(b"\r\n")[0]:
        raise ValueError(head)
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)


connections = []
for _ in range(int(count)):
    plain = socket.create_connection(("127.0.0.1", int(port)))
    connection = context.wrap_socket(plain, server_hostname=host)
    connection.sendall((first + "\r\n").encode())
    answer(connection)
    connections.append(connection)
print("open", flush=True)
sys.stdin.readline()
for connection in connections:
    connection.sendall(second)
    if kind == "websocket":
        assert connection.recv(65536) == second
    else:
        answer(connection)
print("alive", flush=True)
sys.stdin.readline()
