"""An answer as it was on the wire, against the service model that ships in botocore."""

import datetime
import json
import re

# Members the real service was recorded to send that its model does not have.
UNMODELLED = {"id", "buildPhaseOverrides", "roleConfiguration", "versionStateTimeBucket", "terminationReasonCode"}

# Errors of the front that stands before every service, which no model lists.
OF_THE_FRONT = {
    "AccessDeniedException": 403,
    "IncompleteSignatureException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "RequestTimeoutException": 408,
    "RequestTooLargeException": 413,
    "SerializationException": 400,
    "UnknownOperationException": 404,
    "UnrecognizedClientException": 403,
    "ValidationException": 400,
}

# This service says what is unset, with nulls; the other leaves it out.
SAYS_NULL = "lambda-microvms"


def mismatches(operation, status, headers, body):
    """Everything about the answer that the model does not allow; nothing, if all is well."""
    headers = {name.lower(): value for name, value in headers.items()}
    wrong = []
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", headers.get("x-amzn-requestid", "")):
        wrong.append("there is no x-amzn-RequestId")
    if status >= 300:
        return wrong + refusal(operation, status, headers, body)
    return wrong + success(operation, status, headers, body)


def success(operation, status, headers, body):
    wanted = operation.http.get("responseCode", 200)
    wrong = [] if status == wanted else [f"status {status}, the model says {wanted}"]
    if operation.output_shape is None:
        return wrong + ([f"a body where there is none: {body[:200]}"] if body else [])
    if status == 204:
        return wrong + (["a 204 with a body"] if body else [])
    value, problem = parsed(headers, body)
    if problem:
        return wrong + [problem]
    walk = Walk(operation.service_model.service_name)
    walk.structure("answer", operation.output_shape, value, whole=True)
    return wrong + walk.wrong


def refusal(operation, status, headers, body):
    kind = headers.get("x-amzn-errortype", "")
    value, problem = parsed(headers, body)
    if problem:
        return [problem]
    shape = next((shape for shape in operation.error_shapes if shape.name == kind), None)
    if shape is None:
        if OF_THE_FRONT.get(kind) != status:
            return [f"{kind or 'an error without a type'} with status {status} is not in the model of {operation.name}"]
        return [name for name in value if name.lower() != "message"]
    wanted = shape.metadata.get("error", {}).get("httpStatusCode")
    wrong = [] if status == wanted else [f"{kind} with status {status}, the model says {wanted}"]
    walk = Walk(operation.service_model.service_name)
    walk.structure(kind, shape, value, whole=True)
    return wrong + walk.wrong


def parsed(headers, body):
    if not headers.get("content-type", "").startswith("application/json"):
        return None, f"content-type {headers.get('content-type')}"
    try:
        value = json.loads(body)
    except ValueError:
        return None, f"not JSON: {body[:200]}"
    if not isinstance(value, dict):
        return None, f"not an object: {body[:200]}"
    return value, None


class Walk:
    """Compares a value with a shape and collects what is wrong."""

    def __init__(self, service):
        self.says_null = service == SAYS_NULL
        self.wrong = []

    def note(self, path, what):
        self.wrong.append(f"{path}: {what}")

    def value(self, path, shape, value, timestamp=None, whole=False):
        kinds = {
            "string": str, "blob": str, "character": str, "boolean": bool, "integer": int, "long": int,
            "float": (int, float), "double": (int, float), "list": list, "map": dict, "structure": dict,
        }
        kind = shape.type_name
        if kind == "timestamp":
            return self.timestamp(path, timestamp or shape.serialization.get("timestampFormat"), value)
        numeric_boolean = isinstance(value, bool) and kind != "boolean"
        if not isinstance(value, kinds[kind]) or numeric_boolean:
            return self.note(path, f"{json.dumps(value)[:100]} is no {kind}")
        if kind == "string" and shape.enum and value not in shape.enum:
            self.note(path, f"{value!r} is none of {shape.enum}")
        if kind == "structure":
            self.structure(path, shape, value, whole)
        elif kind == "list":
            for index, item in enumerate(value):
                # What a list describes is described whole.
                self.value(f"{path}[{index}]", shape.member, item, whole=whole and self.says_null)
        elif kind == "map":
            for name, item in value.items():
                self.value(f"{path}[{name!r}]", shape.value, item)

    def timestamp(self, path, form, value):
        if form == "iso8601":
            try:
                datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
            except (AttributeError, ValueError):
                self.note(path, f"{value!r} is no ISO-8601 time")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            self.note(path, f"{value!r} is no number of seconds")
        elif not 1_500_000_000 < value < 10_000_000_000:
            self.note(path, f"{value!r} is no time of this century in seconds")

    def structure(self, path, shape, value, whole=False):
        """`whole`: every member the model has must be said, where the service says what is unset."""
        members = {
            member.serialization.get("name", name): (name, member)
            for name, member in shape.members.items()
            if member.serialization.get("location") not in ("header", "headers", "statusCode")
        }
        for name, item in value.items():
            if name not in members:
                if not (self.says_null and name in UNMODELLED):
                    self.note(path, f"{name!r} is not in the model")
                continue
            modelled, member = members[name]
            if item is None:
                if not self.says_null:
                    self.note(path, f"{name!r} is null; this service leaves out what is unset")
                elif modelled in shape.required_members:
                    self.note(path, f"{name!r} is required and null")
                continue
            self.value(f"{path}.{name}", member, item, whole=whole and member.type_name == "list")
        if getattr(shape, "is_tagged_union", False) and len([item for item in value.values() if item is not None]) != 1:
            self.note(path, f"a union with {list(value)} set")
        for name, (modelled, _) in members.items():
            if name not in value and (modelled in shape.required_members or (whole and self.says_null)):
                self.note(path, f"{name!r} is missing")
