"""The whole story with an unmodified AWS client: a Dockerfile becomes a microVM that sleeps and wakes.

Run by `make demo`. `KEEP=1` leaves the server and the microVM running. Ends with 0 only if everything it shows really
happened.
"""

import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import warnings
import zipfile

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

warnings.filterwarnings("ignore", category=DeprecationWarning)

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/pilotlight"
DATA = ROOT / "target/demo"
EXAMPLE = ROOT / "examples/flask-counter"
KEEP = os.environ.get("KEEP", "") not in ("", "0")
API_PORT, EDGE_PORT = 4580, 4443
BASE_IMAGE = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"
FILE = "/file?path=/data/note"
ROLE = "arn:aws:iam::000000000000:role/demo"
TERMINAL = sys.stdout.isatty()


class Failed(Exception):
    """Something did not happen."""


def check(holds, sentence):
    if not holds:
        raise Failed(sentence)


class Step:
    """One line: what is being done, how it goes, how long it took."""

    def __init__(self, text):
        self.text, self.note, self.begin = text, "", time.monotonic()
        if not TERMINAL:
            print(f"... {text}", flush=True)

    def __enter__(self):
        self.progress("")
        return self

    def progress(self, note):
        if TERMINAL:
            line = f"  ... {self.text} {note} ({self.seconds():.0f} s)"
            print(f"\r\033[K{line[:shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def seconds(self):
        return time.monotonic() - self.begin

    def __exit__(self, kind, error, trace):
        self.took = self.seconds()
        mark = "ok  " if kind is None else "FAIL"
        print(("\r\033[K" if TERMINAL else "") + f"{mark} {self.took:7.2f} s  {self.text}", flush=True)
        for line in self.note.splitlines():
            print(f"                {line}", flush=True)


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def vmms():
    """Pids of the VMM processes that work for this demo. A jailed VMM is told nothing of the host but, in its
    environment, whose it is."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
                ours = f"{DATA}/".encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if ours and os.path.basename(line[0]).startswith((b"qemu-system", b"firecracker")):
                found.append(int(entry.name))
    return found


def vmm_of(microvm_id):
    """Pid of the VMM process of a microVM that runs."""
    return json.loads((DATA / "microvms" / microvm_id / "vm" / "vm.json").read_text())["process"]["pid"]


def bytes_on_disk(directory):
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if not path.is_symlink())


class Server:
    """`pilotlight serve` in a data directory of the demo's own."""

    def __init__(self):
        self.process, self.facts, self.environment = None, {}, {}

    def start(self):
        check(PROGRAM.exists(), f"{PROGRAM} is missing: run `make demo`, which builds it")
        stop_running()
        shutil.rmtree(DATA, ignore_errors=True)
        DATA.mkdir(parents=True)
        ports = [port if is_free(port) else 0 for port in (API_PORT, EDGE_PORT)]
        self.log = DATA.parent / "demo.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", "--data-dir", DATA, "--initramfs", ROOT / "target/guest/initramfs.img",
                 "--api-address", f"127.0.0.1:{ports[0]}", "--edge-port", str(ports[1])],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                start_new_session=True)
        for line in self.process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise Failed(f"the server did not start; its log is {self.log}:\n{self.log.read_text()[-2000:]}")
        self.facts = json.loads((DATA / "server.json").read_text())
        exports = subprocess.run([PROGRAM, "env", "--data-dir", DATA], check=True, capture_output=True, text=True).stdout
        for line in exports.splitlines():
            if line.startswith("export "):
                name, value = line[len("export "):].split("=", 1)
                self.environment[name] = value.strip("'\"")
        os.environ.update(self.environment)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failed("the server did not end when asked to") from None
        check(code == 0, f"the server ended with {code}")


def stop_running():
    """Ends a server that an earlier `KEEP=1 make demo` left."""
    try:
        pid = json.loads((DATA / "server.json").read_text())["pid"]
        arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, KeyError):
        arguments = []
    if str(DATA).encode() in arguments:
        os.kill(pid, signal.SIGTERM)
        for _ in range(600):
            if not is_alive(pid):
                break
            time.sleep(0.1)
    for pid in vmms():
        os.kill(pid, signal.SIGKILL)


class App:
    """The app inside the microVM, asked as any HTTPS client would."""

    def __init__(self, endpoint, token, ca):
        self.endpoint, self.token = endpoint, token
        self.context = ssl.create_default_context(cafile=ca)

    def ask(self, path, method="GET", body=None):
        host, _, port = self.endpoint.partition(":")
        connection = http.client.HTTPSConnection(host, int(port or 443), context=self.context, timeout=60)
        try:
            connection.request(method, path, body, {"X-aws-proxy-auth": self.token})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        check(response.status == 200, f"https://{self.endpoint}{path} answered {response.status}: {text}")
        return text

    def count(self):
        return json.loads(self.ask("/"))["counter"]


def poll(ask, done, step, seconds, pause):
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if done(answer):
            return answer
        why = answer.get("stateReason") or "no reason is told"
        check(time.monotonic() < end, f"after {seconds} s it is still {answer['state']}: {why}")
        step.progress(answer["state"])
        time.sleep(pause)


def zip_of(directory):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(directory))
    return content.getvalue()


def build(microvms, s3):
    with Step("upload examples/flask-counter as a zip to s3://demo/flask-counter.zip") as step:
        s3.create_bucket(Bucket="demo")
        content = zip_of(EXAMPLE)
        s3.put_object(Bucket="demo", Key="flask-counter.zip", Body=content)
        step.note = f"{len(content)} bytes"
    with Step("CreateMicrovmImage: Dockerfile -> running app -> snapshot") as step:
        image = microvms.create_microvm_image(
            name="flask-counter", baseImageArn=BASE_IMAGE, buildRoleArn=ROLE,
            codeArtifact={"uri": "s3://demo/flask-counter.zip"}, resources=[{"minimumMemoryInMiB": 512}])
        arn = image["imageArn"]
        image = poll(lambda: microvms.get_microvm_image(imageIdentifier=arn),
                     lambda image: image["state"] != "CREATING", step, 600, 0.5)
        of_version = {"imageIdentifier": arn, "imageVersion": "1.0"}
        builds = microvms.list_microvm_image_builds(**of_version)["items"]
        done = microvms.get_microvm_image_build(**of_version, buildId=builds[0]["buildId"])
        check(image["state"] == "CREATED", f"the image is {image['state']}: {done.get('stateReason')}")
        sizes = done["snapshotBuild"]
        step.note = (f"{arn}\nsnapshot: {sizes['memorySnapshotSizeInBytes'] / 1e6:.0f} MB of memory, "
                     f"{sizes['codeInstallSizeInBytes'] / 1e6:.0f} MB of files")
    return arn, step.took


def launch(microvms, arn, ca):
    begin = time.monotonic()
    with Step("RunMicrovm, CreateMicrovmAuthToken") as step:
        microvm = microvms.run_microvm(imageIdentifier=arn, idlePolicy={
            "maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True})
        microvm_id = microvm["microvmId"]
        token = microvms.create_microvm_auth_token(
            microvmIdentifier=microvm_id, expirationInMinutes=60, allowedPorts=[{"port": 8080}])
        step.note = f"{microvm_id}\nhttps://{microvm['endpoint']}/"
    app = App(microvm["endpoint"], token["authToken"]["X-aws-proxy-auth"], ca)
    with Step("first request through its endpoint, verified against the CA") as step:
        count = app.count()
        took = time.monotonic() - begin
        step.note = f"200, counter {count}"
    return microvm_id, app, count, took


def suspend(microvms, microvm_id):
    vmm = vmm_of(microvm_id)
    check(is_alive(vmm), f"its VMM process {vmm} should run")
    with Step("SuspendMicrovm") as step:
        microvms.suspend_microvm(microvmIdentifier=microvm_id)
        poll(lambda: microvms.get_microvm(microvmIdentifier=microvm_id),
             lambda microvm: microvm["state"] == "SUSPENDED", step, 60, 0.005)
        took = step.seconds()
        check(not is_alive(vmm), "the VMM process is still there")
        written = bytes_on_disk(DATA / "microvms" / microvm_id)
        step.note = f"VMM process {vmm} is gone; {written / 1e6:.1f} MB on disk hold what the microVM changed"
    return took


def wake(microvms, microvm_id, app, count, text):
    with Step("a request to the suspended microVM wakes it") as step:
        begin = time.monotonic()
        woken = app.count()
        took = time.monotonic() - begin
        check(woken == count + 1, f"the counter is {woken}, not {count + 1}: memory was lost")
        step.note = f"200, counter {woken}: it went on from {count}"
    with Step("the file is still there") as step:
        kept = app.ask(FILE)
        check(kept == text, f"the file holds {kept!r}, not {text!r}")
        state = microvms.get_microvm(microvmIdentifier=microvm_id)["state"]
        check(state == "RUNNING", f"it is {state}")
        step.note = repr(kept)
    return took


def demo(server):
    with Step("pilotlight serve") as step:
        server.start()
        step.note = f"API {server.facts['api_url']}, edge port {server.facts['edge_port']}, data in {DATA}"
    ca = server.environment["PILOTLIGHT_CA_BUNDLE"]
    config = Config(s3={"addressing_style": "path"})
    microvms = boto3.client("lambda-microvms", config=config)
    s3 = boto3.client("s3", config=config)
    arn, build_took = build(microvms, s3)
    microvm_id, app, count, launch_took = launch(microvms, arn, ca)
    with Step("count up, write a file") as step:
        for _ in range(2):
            count = app.count()
        text = f"written by the demo at {time.strftime('%H:%M:%S')}"
        app.ask(FILE, "PUT", text)
        step.note = f"counter {count}, /data/note holds {text!r}"
    suspend_took = suspend(microvms, microvm_id)
    wake_took = wake(microvms, microvm_id, app, count, text)

    if not KEEP:
        with Step("TerminateMicrovm, DeleteMicrovmImage, stop the server") as step:
            microvms.terminate_microvm(microvmIdentifier=microvm_id)
            poll(lambda: microvms.get_microvm(microvmIdentifier=microvm_id),
                 lambda microvm: microvm["state"] == "TERMINATED", step, 60, 0.05)
            microvms.delete_microvm_image(imageIdentifier=arn)
            gone(microvms, arn)
            server.stop()
            check(not vmms(), "a VMM process was left behind")
            shutil.rmtree(DATA)
    print()
    for name, seconds in [("build", build_took), ("launch -> first 200", launch_took), ("suspend", suspend_took),
                          ("request -> wake -> 200", wake_took)]:
        print(f"  {name:<24} {seconds:8.2f} s")
    print(f"\nendpoint: https://{app.endpoint}/")
    print("a request with curl" + (":" if KEEP else " (works while a `KEEP=1 make demo` runs):"))
    print(f"  curl --cacert {ca} -H 'X-aws-proxy-auth: {app.token}' https://{app.endpoint}/")
    if KEEP:
        print(f"\nthe server runs on. To use it:\n  eval \"$({PROGRAM} env --data-dir {DATA})\"")
        print(f"to stop it:\n  kill {server.process.pid}")
        print(f"its microVM runs on then, and is taken over by the next `pilotlight serve --data-dir {DATA}`; to end it:"
              f"\n  aws lambda-microvms terminate-microvm --microvm-identifier {microvm_id}")


def gone(microvms, arn):
    for _ in range(200):
        try:
            microvms.get_microvm_image(imageIdentifier=arn)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                return
            raise
        time.sleep(0.1)
    raise Failed("the image is not deleted after 20 s")


def main():
    server = Server()
    try:
        demo(server)
        return 0
    except (Failed, BotoCoreError, ClientError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    if server.process:
        clean_up(server)
    return 1


def clean_up(server):
    """Leaves nothing of a demo that failed, but its log."""
    if server.process.poll() is not None:
        print(f"the server ended with {server.process.returncode}: its log is {server.log}", file=sys.stderr)
        print("its data stay in place; the next demo removes them", file=sys.stderr)
        return
    try:
        microvms = boto3.client("lambda-microvms")
        for microvm in microvms.list_microvms()["items"]:
            microvms.terminate_microvm(microvmIdentifier=microvm["microvmId"])
        for _ in range(100):
            if not any((DATA / "microvms").iterdir()):
                break
            time.sleep(0.1)
    except Exception as error:
        print(f"could not end the microVMs: {error}", file=sys.stderr)
    try:
        server.stop()
    except Failed as error:
        print(error, file=sys.stderr)
    stop_running()
    shutil.rmtree(DATA, ignore_errors=True)
    print(f"the server's log is {server.log}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
