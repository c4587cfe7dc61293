"""Shells in one microVM, by Python's websockets and by the command in a terminal: python shell.py FACTS, a JSON object."""

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request
import uuid

import boto3
import websockets.exceptions
import wss

facts = json.loads(sys.argv[1])
endpoint, microvm = facts["endpoint"], facts["microvm"]
lambda_microvms = boto3.client("lambda-microvms")
PATIENCE = 90
PROMPT = "λ $ ".encode()


def shell_token():
    answer = lambda_microvms.create_microvm_shell_auth_token(microvmIdentifier=microvm, expirationInMinutes=5)
    return answer["authToken"]["X-aws-proxy-auth"]


def tls():
    return ssl.create_default_context(cafile=facts["ca"])


class Shell:
    """A session of an ordinary client."""

    def __init__(self, token=None, path="/shell", offers=(), headers=None):
        token = token or shell_token()
        subprotocols = ["lambda-microvms", f"lambda-microvms.authentication.{token}", *offers] if headers is None else None
        self.socket = wss.connect(
            endpoint, facts["ca"], path, subprotocols=subprotocols, additional_headers=headers, ping_interval=None)
        init = self.socket.recv(PATIENCE)
        assert isinstance(init, str), init
        init = json.loads(init)
        assert init["type"] == "session_init" and uuid.UUID(init["session_id"]), init
        self.shown = b""

    def type(self, what):
        self.socket.send(what.encode() if isinstance(what, str) else what)

    def until(self, wanted, patience=PATIENCE):
        """What is shown up to and with this; the rest is kept."""
        deadline = time.monotonic() + patience
        pattern = wanted if isinstance(wanted, re.Pattern) else re.compile(re.escape(wanted.encode() if isinstance(wanted, str) else wanted))
        while not (found := pattern.search(self.shown)):
            try:
                more = self.socket.recv(max(0, deadline - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"{wanted} was not shown, but {self.shown[-2000:]}") from None
            assert isinstance(more, bytes), more
            self.shown += more
        before, self.shown = self.shown[: found.end()], self.shown[found.end():]
        return before

    def ask(self, line):
        """What a line prints. The line itself is echoed first; its marks are not in it as they are printed."""
        self.type(f"echo be''gin; {line}; echo e''nd\r")
        self.until(b"begin\r\n")
        return self.until(b"end\r\n")[: -len(b"end\r\n")].decode().replace("\r\n", "\n").strip()

    def closed(self):
        """Reads to the close; its code and reason."""
        try:
            while True:
                self.shown += self.socket.recv(PATIENCE)
        except websockets.exceptions.ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else None

    def exit(self):
        self.type("exit\r")
        assert self.closed() == (1000, "shell exited"), "it closes otherwise"


def session():
    shell = Shell()
    shell.until(PROMPT)
    return shell


def eventually(what, so):
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.2)


def refused(*arguments, **more):
    try:
        Shell(*arguments, **more)
    except websockets.exceptions.InvalidStatus as error:
        return error.response.status_code, (error.response.body or b"").decode()
    raise AssertionError("it is open")


def beside_the_app():
    shell = session()
    # Before it is told, there is no size.
    assert shell.ask("stty size") == "0 0"
    shell.socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 40}))
    assert shell.ask("stty size") == "40 120"
    assert shell.ask("tty").startswith("/dev/pts/")
    assert shell.ask("id -u; echo $TERM; echo $0") == "0\nxterm\nbash"
    assert shell.ask("echo $FROM_THE_REQUEST") == "yes, and = kept", "the app's environment"
    assert shell.ask("echo $HOME; pwd") == "/root\n" + facts["workdir"]
    # The app is process 1 here as for itself, and there are no others but its own and these.
    assert "python" in shell.ask("tr '\\0' ' ' </proc/1/cmdline")
    assert shell.ask("readlink /proc/1/ns/mnt") == shell.ask("readlink /proc/self/ns/mnt")
    assert shell.ask("readlink /proc/1/ns/pid") == shell.ask("readlink /proc/self/ns/pid")
    assert shell.ask("grep CapBnd /proc/1/status") == shell.ask("grep CapBnd /proc/self/status")
    assert shell.ask("cat /proc/self/oom_score_adj; ulimit -n") == "0\n1024"
    app = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/probe/born').status)"
    # On a busy machine it was snapshotted before it listened.
    eventually("the app to answer", lambda: shell.ask(f'python3 -c "{app}"') == "200")
    shell.socket.send("echo typ''ed\n")
    shell.until(b"typed\r\n")
    # UTF-8 and control characters pass as they are.
    shell.type("printf '\\033[1mλ\\033[0m\\n'\r")
    shell.until("\033[1mλ\033[0m".encode())
    assert shell.ask("echo gone >/tmp/left; cat /tmp/left") == "gone"
    shell.exit()
    # Its neighbour sees the same files.
    other = Shell(headers={"X-aws-proxy-auth": shell_token()})
    assert other.socket.subprotocol is None
    other.until(PROMPT)
    assert other.ask("cat /tmp/left") == "gone"
    other.exit()


def keys_and_jobs():
    shell = session()
    shell.type("sleep 1000; echo st''atus=$?\r")
    time.sleep(1)
    shell.type(b"\x03")
    # Bash leaves the rest of the line, too, when its program is interrupted.
    shell.until(PROMPT)
    assert shell.ask("echo $?") in ("0", "130")
    shell.type("trap 'echo cau''ght' INT\r")
    shell.until(PROMPT)
    shell.type("cat\r")
    time.sleep(1)
    shell.type("line\r")
    shell.until(b"line\r\nline\r\n")
    shell.type(b"\x1a")
    shell.until(re.compile(rb"Stopped +cat"))
    shell.type("bg >/dev/null 2>&1; sleep 1000 &\r")
    shell.until(PROMPT)
    assert "sleep 1000" in shell.ask("jobs")
    shell.type("fg %1\r")
    shell.until(b"cat\r\n")
    shell.type(b"\x04")
    shell.until(PROMPT)
    shell.type("kill %2; wait %2; echo st''atus=$?\r")
    shell.until(b"status=143")
    shell.exit()


def much():
    """Far more than any buffer, both ways, and nothing lost."""
    shell = session()
    shell.type("stty -echo; echo re''ady; seq 200000 | sha256sum; seq 200000; echo do''ne\r")
    shell.until(b"ready\r\n")
    digest = shell.until(b"\r\n").split()[0].decode()
    numbers = shell.until(b"done\r\n")[: -len(b"done\r\n")].replace(b"\r\n", b"\n")
    assert hashlib.sha256(numbers).hexdigest() == digest, "what is shown is not what was written"
    pasted = os.urandom(100_000)
    shell.type(f"stty raw; echo re''ady; head -c {len(pasted)} | sha256sum; stty sane; echo do''ne\r")
    shell.until(b"ready\n")
    time.sleep(1)
    shell.type(pasted)
    digest = shell.until(re.compile(rb"[0-9a-f]{64}"))[-64:].decode()
    assert hashlib.sha256(pasted).hexdigest() == digest, "what is read is not what was typed"
    shell.until(b"done")
    shell.exit()


def whoever_leaves_hangs_up():
    watcher = session()
    # Spelt so that who looks for it does not find itself.
    count = "grep -lzx '3133[78]' /proc/[0-9]*/cmdline 2>/dev/null | wc -l"
    leaver = session()
    leaver.type("sleep 31337 & sleep 31338\r")
    eventually("two sleepers", lambda: watcher.ask(count) == "2")
    # As a client that is killed: no close, and a reset rather than an end.
    raw = leaver.socket.socket
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(raw.detach())
    eventually("their end", lambda: watcher.ask(count) == "0")
    # What is left in the background does not keep a session open.
    lingerer = session()
    lingerer.type("nohup sleep 31337 >/dev/null 2>&1 & exit\r")
    assert lingerer.closed() == (1000, "shell exited")
    eventually("it to go on", lambda: watcher.ask(count) == "1")
    assert watcher.ask("kill $(grep -lzx 3133[7] /proc/[0-9]*/cmdline | cut -d/ -f3); echo ok") == "ok"
    watcher.exit()


def without_bash():
    shell = session()
    bash = shell.ask("readlink -f $(command -v bash)")
    shell.ask(f"mv {bash} {bash}.away")
    try:
        plain = session()
        assert plain.ask("echo $0") == "sh"
        assert plain.ask("tty").startswith("/dev/pts/")
        sh = plain.ask("command -v sh")
        plain.ask(f"mv {sh} {sh}.away")
        try:
            assert refused() == (502, ""), "there is no shell"
        finally:
            plain.ask(f"mv {sh}.away {sh}")
        plain.exit()
    finally:
        shell.ask(f"mv {bash}.away {bash}")
    shell.exit()


def wrong_tokens():
    assert refused(facts["token"]) == (403, "Token authentication failed")
    assert refused("nonsense") == (403, "Request missing authentication")
    assert refused(path="/") == (502, "")
    assert refused(offers=["lambda-microvms.port.8080"]) == (502, "")
    request = urllib.request.Request(f"https://{endpoint}/shell", headers={"X-aws-proxy-auth": shell_token()})
    try:
        urllib.request.urlopen(request, context=tls(), timeout=PATIENCE)
        raise AssertionError("a shell's token leads to the app")
    except urllib.error.HTTPError as error:
        assert (error.code, error.read()) == (502, b""), error
    # Plain HTTP of that path is the app's, which has none.
    request = urllib.request.Request(f"https://{endpoint}/shell", headers={"X-aws-proxy-auth": facts["token"]})
    try:
        urllib.request.urlopen(request, context=tls(), timeout=PATIENCE)
        raise AssertionError("the app has such a page")
    except urllib.error.HTTPError as error:
        assert error.code == 404, error
    try:
        lambda_microvms.create_microvm_shell_auth_token(microvmIdentifier=facts["without"], expirationInMinutes=5)
        raise AssertionError("a microVM without the connector has a shell")
    except lambda_microvms.exceptions.ValidationException as error:
        assert "SHELL_INGRESS" in error.response["Error"]["Message"], error


def across_a_suspend():
    shell = session()
    shell.type("sh -c 'trap \"echo hung up >/tmp/heard; exit\" HUP; echo re\"\"ady; while :; do sleep 1; done'\r")
    shell.until(b"ready\r\n")
    lambda_microvms.suspend_microvm(microvmIdentifier=microvm)
    code, reason = shell.closed()
    assert code == 1001 and "suspended" in reason, (code, reason)
    state = lambda: lambda_microvms.get_microvm(microvmIdentifier=microvm)["state"]
    eventually("SUSPENDED", lambda: state() == "SUSPENDED")
    # A token wakes nothing, a shell does; what the one before was doing has been told of its end.
    token = shell_token()
    assert state() == "SUSPENDED"
    woken = Shell(token)
    woken.until(PROMPT)
    eventually("it to be told", lambda: woken.ask("cat /tmp/heard") == "hung up")
    woken.exit()


class Terminal:
    """The command, in a terminal of its own."""

    def __init__(self, *arguments, target=None):
        self.ours, self.theirs = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.theirs)

        def take_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [facts["program"], "shell", "--data-dir", facts["data_dir"], target or microvm, *arguments],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, preexec_fn=take_terminal,
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")})
        self.shown = b""

    def resize(self, cols, rows):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, what):
        os.write(self.ours, what.encode() if isinstance(what, str) else what)

    def until(self, wanted):
        wanted = wanted.encode() if isinstance(wanted, str) else wanted
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.shown:
            assert select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0], (
                f"{wanted} was not shown, but {self.shown[-2000:]}")
            self.shown += os.read(self.ours, 65536)
        before, self.shown = self.shown.split(wanted, 1)
        return before

    def ended(self):
        """The exit code; by then, the terminal is what it was."""
        code = self.process.wait(PATIENCE)
        now = termios.tcgetattr(self.theirs)
        assert now == self.before, f"{now} instead of {self.before}"
        with contextlib.suppress(OSError):
            while select.select([self.ours], [], [], 0)[0]:
                self.shown += os.read(self.ours, 65536)
        os.close(self.ours)
        os.close(self.theirs)
        return code


def by_the_command():
    terminal = Terminal()
    terminal.until(PROMPT)
    assert termios.tcgetattr(terminal.theirs) != terminal.before, "keys are not let through"
    terminal.type("stty size\r")
    terminal.until(b"30 100\r\n")
    terminal.until(PROMPT)
    terminal.resize(90, 20)
    # There is no telling when the new size has arrived but by looking.
    for _ in range(20):
        terminal.type("stty size; echo lo''oked\r")
        if b"20 90\r\n" in terminal.until(b"looked\r\n"):
            break
        time.sleep(0.5)
    else:
        raise AssertionError("the new size does not arrive")
    terminal.type("sleep 1000\r")
    time.sleep(1)
    terminal.type(b"\x03")
    terminal.until(b"^C")
    terminal.until(PROMPT)
    # A tilde counts at the beginning of a line.
    terminal.type("\r~?")
    terminal.until(b"disconnect")
    terminal.type("exit 7\r")
    assert terminal.ended() == 7

    terminal = Terminal()
    terminal.until(PROMPT)
    terminal.type("~.")
    assert terminal.ended() == 255
    for number in signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
        terminal = Terminal()
        terminal.until(PROMPT)
        terminal.process.send_signal(number)
        assert terminal.ended() == 255, number
    # Its terminal goes away.
    terminal = Terminal()
    terminal.until(PROMPT)
    os.close(terminal.theirs)
    os.close(terminal.ours)
    assert terminal.process.wait(PATIENCE) in (255, -signal.SIGHUP)

    terminal = Terminal("--", "sh", "-c", "echo \"it's $0\"; exit 3", "λ")
    assert terminal.ended() == 3
    assert "it's λ\r\n".encode() in terminal.shown, terminal.shown
    terminal = Terminal(target=facts["without"])
    assert terminal.ended() == 255
    said = terminal.shown.decode()
    assert "--ingress-network-connectors" in said and "network-connector:SHELL_INGRESS" in said, said
    terminal = Terminal(target="microvm-00000000-0000-4000-8000-000000000000")
    assert terminal.ended() == 255
    assert b"microvm-00000000" in terminal.shown, terminal.shown

    # Without a terminal, and with AWS's variables.
    command = [facts["program"], "shell", microvm]
    piped = subprocess.run(command, input=b"echo $((6 * 7))\nexit 5\n", capture_output=True, timeout=PATIENCE)
    assert piped.returncode == 5 and b"42\r\n" in piped.stdout and not piped.stderr, piped
    ran = subprocess.run([*command, "--", "seq 3; kill -TERM $$"], stdin=subprocess.DEVNULL, capture_output=True,
                         timeout=PATIENCE)
    assert ran.returncode == 143 and ran.stdout == b"1\r\n2\r\n3\r\n", ran


def ended_with_the_command():
    """The microVM is suspended beneath a person."""
    terminal = Terminal()
    terminal.until(PROMPT)
    lambda_microvms.suspend_microvm(microvmIdentifier=microvm)
    assert terminal.ended() == 255
    assert b"suspended" in terminal.shown, terminal.shown


for test in (beside_the_app, keys_and_jobs, much, whoever_leaves_hangs_up, without_bash, wrong_tokens, across_a_suspend,
             by_the_command, ended_with_the_command):
    if len(sys.argv) > 2 and test.__name__ not in sys.argv[2:]:
        continue
    began = time.monotonic()
    test()
    print(f"{test.__name__} {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
print("all typed")
