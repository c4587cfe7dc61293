"""Unmodified boto3 behind a pipe: one JSON request a line in, one JSON answer a line out, each served by a thread."""

import base64
import contextlib
import datetime
import http.client
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
import warnings

import botocore.auth
import botocore.config
import botocore.exceptions
import botocore.session

warnings.filterwarnings("ignore", category=DeprecationWarning)
writing = threading.Lock()
making = threading.Lock()
clients = {}


def client(request):
    """A client as a user makes one, except that it does not retry: a test wants to see the first answer."""
    key = (request["client"], request.get("access_key"), request.get("secret_key"))
    with making:
        if key not in clients:
            import boto3

            config = botocore.config.Config(
                retries={"total_max_attempts": 1}, read_timeout=180, max_pool_connections=64,
                s3={"addressing_style": "path"})
            clients[key] = boto3.session.Session().client(
                key[0], aws_access_key_id=key[1], aws_secret_access_key=key[2], config=config)
        return clients[key]


shifted = threading.local()
real_now = botocore.auth.get_current_datetime


def shifted_now(*args, **kwargs):
    return real_now(*args, **kwargs) + datetime.timedelta(seconds=getattr(shifted, "seconds", 0))


botocore.auth.get_current_datetime = shifted_now


@contextlib.contextmanager
def clock(seconds):
    """Signs as a client would whose clock is wrong by so much."""
    shifted.seconds = seconds
    try:
        yield
    finally:
        shifted.seconds = 0


def call(request):
    parameters = dict(request.get("parameters") or {})
    if "BodyFile" in parameters:
        parameters["Body"] = open(parameters.pop("BodyFile"), "rb")
    with clock(request.get("clock_offset", 0)):
        answer = getattr(client(request), request["operation"])(**parameters)
    status = answer.pop("ResponseMetadata", {}).get("HTTPStatusCode")
    return {"status": status, "answer": answer}


def ask(request):
    """One HTTPS request, verified against the CA, as curl would make it."""
    url = urllib.parse.urlsplit(request["url"])
    context = ssl.create_default_context(cafile=os.environ["PILOTLIGHT_CA_BUNDLE"])
    begin = time.monotonic()
    connection = http.client.HTTPSConnection(
        url.hostname, url.port or 443, timeout=request.get("timeout", 60), context=context)
    try:
        target = url.path or "/"
        if url.query:
            target += "?" + url.query
        connection.request(request.get("method", "GET"), target, request.get("body"), request.get("headers") or {})
        response = connection.getresponse()
        pieces, first = [], None
        while piece := response.read1(65536):
            first = first or time.monotonic()
            pieces.append(piece)
        end = time.monotonic()
        return {
            "status": response.status,
            "headers": {name.lower(): value for name, value in response.getheaders()},
            "body": b"".join(pieces).decode(errors="replace"),
            "first_byte_ms": ((first or end) - begin) * 1000,
            "ms": (end - begin) * 1000,
        }
    finally:
        connection.close()


def many(request):
    """The same request so many times at once."""
    count = request["count"]
    answers, together = [None] * count, threading.Barrier(count)

    def one(index):
        together.wait()
        try:
            answers[index] = ask(request)
        except Exception as error:
            answers[index] = {"status": 0, "headers": {}, "body": repr(error), "first_byte_ms": 0, "ms": 0}

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def plain(value):
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def serve(request):
    answer = {"id": request["id"]}
    try:
        answer["ok"] = {"call": call, "ask": ask, "many": many}[request["op"]](request)
    except botocore.exceptions.ClientError as error:
        said = error.response.get("Error", {})
        answer["error"] = {
            "code": said.get("Code", ""),
            "message": said.get("Message") or "",
            "status": error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
        }
    except Exception as error:
        answer["error"] = {"code": type(error).__name__, "message": str(error), "status": 0}
    line = json.dumps(answer, default=plain)
    with writing:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


for line in sys.stdin:
    threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()
