"""What `make soak` runs in a microVM: memory, files, timers, clocks and connections that are checked after every wake."""

import hashlib
import http.server
import json
import os
import random
import threading
import time
import urllib.parse
import zlib

from keepsakes import Call, Keepsakes

BLOCK = 1 << 20
PAGE = 4096
DIRECTORY = "/var/soak"
FILES = 16
# Between two ticks of the ticker, and how late one may be on a busy emulated processor.
TICK = 0.05
TICK_LATE = 5.0


class Memory:
    """Blocks of a MiB, no two pages of which are alike, and what each sums to."""

    def __init__(self, mebibytes):
        self.blocks = [bytearray(BLOCK) for _ in range(mebibytes)]
        self.sums = [0] * mebibytes
        for number in range(mebibytes):
            self.change(number, 0)

    def change(self, number, cycle):
        filler = random.Random(number << 32 | cycle).randbytes(PAGE - 16)
        block = self.blocks[number]
        for page in range(0, BLOCK, PAGE):
            block[page:page + PAGE] = b"%7d%4d%5d" % (cycle % 10**7, page // PAGE, number) + filler
        self.sums[number] = zlib.crc32(block)

    def touch(self, cycle):
        """One page in each block of a number of blocks: changes that are far apart."""
        for number in range(cycle % 4, len(self.blocks), 4):
            at = cycle * 7 % (BLOCK // PAGE) * PAGE
            self.blocks[number][at:at + 8] = b"%8d" % (cycle % 10**8)
            self.sums[number] = zlib.crc32(self.blocks[number])

    def wrong(self):
        return [number for number, block in enumerate(self.blocks) if zlib.crc32(block) != self.sums[number]]


class Files:
    """Files of a MiB, read from the disk and not from the page cache."""

    def __init__(self):
        os.makedirs(DIRECTORY, exist_ok=True)
        self.sums = {}
        for number in range(FILES):
            self.change(number)

    def path(self, number):
        return f"{DIRECTORY}/{number}"

    def change(self, number):
        data = os.urandom(BLOCK)
        with open(self.path(number), "wb") as out:
            out.write(data)
            out.flush()
            # Half of them are left for the guest's kernel to write when it likes.
            if number % 2:
                os.fsync(out.fileno())
        self.sums[number] = hashlib.md5(data).hexdigest()

    def wrong(self):
        found = []
        for number, expected in self.sums.items():
            with open(self.path(number), "rb") as kept:
                # Does nothing for pages that were not written yet; they are in the memory that is checked.
                os.posix_fadvise(kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if hashlib.md5(kept.read()).hexdigest() != expected:
                    found.append(number)
        return found


class Ticker:
    """A thread that does nothing but sleep again and again."""

    def __init__(self):
        self.ticks = 0
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self):
        while True:
            time.sleep(TICK)
            self.ticks += 1

    def ticks_on(self):
        before = self.ticks
        deadline = time.monotonic() + TICK_LATE
        while self.ticks == before and time.monotonic() < deadline:
            time.sleep(TICK)
        return self.ticks > before


class Soak:
    def __init__(self, mebibytes, call):
        self.memory = Memory(mebibytes)
        self.files = Files()
        self.keepsakes = Keepsakes()
        self.ticker = Ticker()
        self.address = call
        self.cycle = 0
        self.arm()

    def arm(self):
        """What the next suspend is to cut through."""
        self.monotonic = time.monotonic()
        self.call = Call(self.address)
        self.alarm = threading.Event()
        threading.Timer(0.2, self.alarm.set).start()

    def check(self, cycle):
        """Every failure of this cycle in words; then everything changes a little."""
        failures = []
        if self.cycle != cycle - 1:
            failures.append(f"the memory is of cycle {self.cycle}, not {cycle - 1}")
        if wrong := self.memory.wrong():
            failures.append(f"memory: blocks {wrong}")
        if wrong := self.files.wrong():
            failures.append(f"files: {wrong}")
        if wrong := self.keepsakes.check():
            failures.append(f"keepsakes: {wrong}")
        if not self.ticker.ticks_on():
            failures.append("the ticker stands still")
        if not self.alarm.wait(TICK_LATE):
            failures.append("a timer was lost")
        if time.monotonic() < self.monotonic:
            failures.append("the monotonic clock went back")
        if not self.call.ended.wait(2):
            failures.append("the connection to the outside is still there")
        elif self.call.end != "ECONNABORTED":
            failures.append(f"the connection to the outside ended with {self.call.end}")
        self.cycle = cycle
        blocks = len(self.memory.blocks)
        for number in range(8):
            self.memory.change((cycle * 8 + number) % blocks, cycle)
        self.memory.touch(cycle)
        self.files.change(cycle % FILES)
        self.arm()
        return failures


soak = None


class Door(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global soak
        url = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(url.query))
        answer = {}
        if url.path == "/prepare":
            soak = Soak(int(asked["mib"]), asked["call"])
        elif url.path == "/cycle":
            # First: what is wrong with the clock when the guest has just woken is what counts.
            answer = {"unix": time.time(), "random": os.urandom(16).hex()}
            answer["failures"] = soak.check(int(asked["number"]))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Door).serve_forever()
