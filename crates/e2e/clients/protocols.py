"""The usual clients of each protocol against an endpoint: python protocols.py HOST:PORT TOKEN CA_FILE."""

import subprocess
import sys
import threading

import grpc
import websockets.exceptions
import wss

endpoint, token, ca_file = sys.argv[1:]
host, port = endpoint.rsplit(":", 1)


def grpc_calls(app_port, headers=()):
    with open(ca_file, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    # Its own resolver does not know *.localhost.
    options = [("grpc.ssl_target_name_override", host), ("grpc.default_authority", endpoint)]
    metadata = [("x-aws-proxy-auth", token), ("x-aws-proxy-port", str(app_port)), *headers]
    with grpc.secure_channel(f"ipv4:127.0.0.1:{port}", credentials, options) as channel:
        usual = {"metadata": metadata, "timeout": 60}
        answer, call = channel.unary_unary("/echo/Unary").with_call(b"one", **usual)
        assert answer == b"one" and ("x-count", "1") in call.trailing_metadata(), (answer, call)
        gzip = channel.unary_unary("/echo/Unary")(b"x" * 10_000, compression=grpc.Compression.Gzip, **usual)
        assert gzip == b"x" * 10_000
        stream = channel.unary_stream("/echo/Server")(b"n", **usual)
        assert list(stream) == [b"n0", b"n1", b"n2"]
        assert ("x-count", "3") in stream.trailing_metadata()
        # More than any window.
        mebibytes = (bytes(1 << 20) for _ in range(8))
        assert channel.stream_unary("/echo/Client")(mebibytes, **usual) == str(8 << 20).encode()
        sent = []

        def ask():
            # Each message only once the one before was answered: nothing is held back.
            for number in range(4):
                while len(answers) < number:
                    more.wait(1)
                    more.clear()
                sent.append(str(number).encode())
                yield sent[-1]

        answers, more = [], threading.Event()
        both = channel.stream_stream("/echo/Both")(ask(), **usual)
        for message in both:
            answers.append(message)
            more.set()
        assert answers == sent and ("x-count", "4") in both.trailing_metadata()
        try:
            channel.unary_unary("/echo/Failing")(b"", **usual)
            raise AssertionError("it did not fail")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "not today", error
        try:
            channel.unary_unary("/echo/Unary")(b"", metadata=[("x-aws-proxy-auth", "nonsense")], timeout=60)
            raise AssertionError("a call without a token got through")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error


def curl(version):
    output = subprocess.run(
        ["curl", f"--http{version}", "--silent", "--show-error", "--max-time", "60", "--cacert", ca_file,
         "--resolve", f"{endpoint}:127.0.0.1", "--header", f"X-aws-proxy-auth: {token}",
         "--header", "X-aws-proxy-port: 8443", "--data", "hello", "--write-out", "|%{http_code}|%{http_version}",
         f"https://{endpoint}/"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert output.returncode == 0, output
    # The app's side is TLS with a certificate that nobody has signed.
    assert output.stdout == f"TLSv1.3 {endpoint} hello|200|{version}", output.stdout


def connected(offers, headers=None):
    return wss.connect(endpoint, ca_file, subprotocols=offers, additional_headers=headers)


def web_sockets():
    offers = ["lambda-microvms", f"lambda-microvms.authentication.{token}", "lambda-microvms.port.8080"]
    for more, chosen in ([], "lambda-microvms"), (["v0", "chat"], "chat"):
        with connected(offers + more) as connection:
            assert connection.subprotocol == chosen, connection.subprotocol
            connection.send("what was offered?")
            assert connection.recv(60) == (", ".join(more) or "nothing")
            for message in "text", b"bytes", "x" * 200_000:
                connection.send(message)
                assert connection.recv(60) == message
    with connected(None, {"X-aws-proxy-auth": token}) as connection:
        assert connection.subprotocol is None
        connection.send("by header")
        assert connection.recv(60) == "by header"
    try:
        connected(offers[:1])
        raise AssertionError("a handshake without a token got through")
    except websockets.exceptions.InvalidStatus as error:
        assert error.response.status_code == 403, error


grpc_calls(50051)
grpc_calls(50051, [("x-aws-proxy-force-h2", "true")])
grpc_calls(50052)
curl("2")
curl("1.1")
web_sockets()
print("all spoken")
