"""A shell that doubles numbers: python apart.py FACTS, a JSON object. A line of input is a number; a line of output is twice
that, or "closed" and why."""

import json
import re
import sys
import threading

import websockets.exceptions
import wss

facts = json.loads(sys.argv[1])


def show(shell):
    shown = b""
    try:
        while True:
            message = shell.recv()
            shown += message if isinstance(message, bytes) else b""
            # As it is printed, not as it is echoed.
            while found := re.search(rb"twice is (\d+);", shown):
                print(found[1].decode(), flush=True)
                shown = shown[found.end():]
    except websockets.exceptions.ConnectionClosed as error:
        print("closed", error, flush=True)


offers = ["lambda-microvms", f"lambda-microvms.authentication.{facts['token']}"]
with wss.connect(facts["endpoint"], facts["ca"], "/shell", subprotocols=offers, ping_interval=None) as shell:
    threading.Thread(target=show, args=[shell], daemon=True).start()
    for line in sys.stdin:
        shell.send(f"echo \"twice is $(({int(line)} * 2));\"\r".encode())
