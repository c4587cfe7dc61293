"""A server of each protocol that an endpoint carries. gRPC without a compiler: its messages are bytes."""

import concurrent.futures
import http.server
import ssl
import threading

import grpc
import websockets.sync.server


def joined(messages):
    return b"+".join(messages)


def trailed(context, count):
    context.set_trailing_metadata((("x-count", str(count)),))


def unary(message, context):
    trailed(context, 1)
    return message


def server_stream(message, context):
    for number in range(3):
        yield message + str(number).encode()
    trailed(context, 3)


def client_stream(messages, context):
    lengths = [len(message) for message in messages]
    trailed(context, len(lengths))
    return str(sum(lengths)).encode()


def both_stream(messages, context):
    count = 0
    for count, message in enumerate(messages, 1):
        yield message
    trailed(context, count)


def failing(message, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


class Echo(grpc.GenericRpcHandler):
    KINDS = {
        "/echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
        "/echo/Server": grpc.unary_stream_rpc_method_handler(server_stream),
        "/echo/Client": grpc.stream_unary_rpc_method_handler(client_stream),
        "/echo/Both": grpc.stream_stream_rpc_method_handler(both_stream),
        "/echo/Failing": grpc.unary_unary_rpc_method_handler(failing),
    }

    def service(self, details):
        return self.KINDS.get(details.method)


class Https(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = f"{self.request.version()} {self.headers['host']} ".encode() + body
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Page(http.server.BaseHTTPRequestHandler):
    """A page and its events, each of which waits until the one before was heard."""

    protocol_version = "HTTP/1.1"
    heard = threading.Semaphore(0)

    def do_GET(self):
        if self.path == "/events":
            return self.events()
        body = b"<!doctype html><title>a page</title>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", "app=its own; Path=/")
        self.end_headers()
        self.wfile.write(body)

    def events(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"event: count\nid: {number}\ndata: n{number}\n\n".encode())
            self.heard.acquire()
        self.wfile.write(b"event: last\ndata:\n\n")

    def do_POST(self):
        self.heard.release()
        self.send_response(204)
        self.end_headers()


def talk(connection):
    for message in connection:
        if message == "what was offered?":
            message = connection.request.headers.get("sec-websocket-protocol", "nothing")
        connection.send(message)


with open("key.pem", "rb") as key, open("cert.pem", "rb") as cert:
    pair = (key.read(), cert.read())
calls = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[Echo()])
calls.add_insecure_port("127.0.0.1:50051")
calls.add_secure_port("127.0.0.1:50052", grpc.ssl_server_credentials([pair]))
calls.start()

https = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Https)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
# The handshake belongs to the connection's thread, not to the one that accepts.
https.socket = context.wrap_socket(https.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=https.serve_forever, daemon=True).start()

page = http.server.ThreadingHTTPServer(("127.0.0.1", 8081), Page)
threading.Thread(target=page.serve_forever, daemon=True).start()

# Last, as its port is the one that is waited for.
with websockets.sync.server.serve(
    talk, "0.0.0.0", 8080, select_subprotocol=lambda _, offered: "chat" if "chat" in offered else None
) as sockets:
    sockets.serve_forever()
