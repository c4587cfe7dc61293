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
import botocore.awsrequest
import botocore.config
import botocore.exceptions
import botocore.session

import shapes

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
            made = boto3.session.Session().client(
                key[0], aws_access_key_id=key[1], aws_secret_access_key=key[2], config=config)
            for service in MODELLED:
                made.meta.events.register(f"before-parse.{service}", look)
            clients[key] = made
        return clients[key]


MODELLED = ("lambda-microvms", "lambda-core")
seen = threading.local()


class ShapeMismatch(Exception):
    """An answer that the service's model does not allow, whatever the client made of it."""


def look(operation_model, response_dict, **_):
    """Every answer is looked at as it came, before boto3 reads it."""
    seen.mismatches = shapes.mismatches(
        operation_model, response_dict["status_code"], response_dict["headers"], response_dict["body"])


def operation_model(service, name):
    with making:
        return botocore.session.get_session().get_service_model(service).operation_model(name)


def model(request):
    """The service's model, as it ships."""
    loader = botocore.session.get_session().get_component("data_loader")
    return loader.load_service_model(request["service"], "service-2")


def raw(request):
    """One request to the API as it is given, signed unless it is not to be; the answer as it came, and what is wrong
    with it. This is how a client sends what an SDK would not."""
    url = os.environ["AWS_ENDPOINT_URL"] + request["target"]
    signed = botocore.awsrequest.AWSRequest(
        request["method"], url, data=(request.get("body") or "").encode(), headers=request.get("headers") or {})
    if not request.get("unsigned"):
        credentials = botocore.session.get_session().get_credentials()
        botocore.auth.SigV4Auth(credentials, "lambda", os.environ["AWS_REGION"]).add_auth(signed)
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        # The target as it is: a library that tidied it up would send another than was signed.
        connection.request(request["method"], request["target"], signed.body, dict(signed.headers.items()))
        response = connection.getresponse()
        body, headers = response.read(), dict(response.getheaders())
    finally:
        connection.close()
    wrong = []
    if "operation" in request:
        wrong = shapes.mismatches(
            operation_model(request["service"], request["operation"]), response.status, headers, body)
    return {
        "status": response.status,
        "headers": {name.lower(): value for name, value in headers.items()},
        "body": body.decode(errors="replace"),
        "mismatches": wrong,
    }


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
    seen.mismatches = []
    try:
        with clock(request.get("clock_offset", 0)):
            answer = getattr(client(request), request["operation"])(**parameters)
    finally:
        if seen.mismatches:
            raise ShapeMismatch(f"{request['operation']}: " + "; ".join(seen.mismatches))
    status = answer.pop("ResponseMetadata", {}).get("HTTPStatusCode")
    if "Body" in answer:
        answer["Body"] = answer["Body"].read().decode(errors="replace")
    return {"status": status, "answer": answer}


def ask(request):
    """One HTTPS request, verified against the CA, as curl would make it; a plain one where the URL says so."""
    url = urllib.parse.urlsplit(request["url"])
    timeout = request.get("timeout", 60)
    context = ssl.create_default_context(cafile=os.environ["PILOTLIGHT_CA_BUNDLE"])
    begin = time.monotonic()
    if url.scheme == "http":
        connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(url.hostname, url.port or 443, timeout=timeout, context=context)
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


def presign(request):
    """An address that is enough."""
    return client(request).generate_presigned_url(
        request["operation"], Params=request["parameters"], ExpiresIn=request["expires"])


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
        answer["ok"] = {"call": call, "ask": ask, "many": many, "raw": raw, "model": model, "presign": presign}[request["op"]](request)
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
