"""A browser against an endpoint: python browser.py HOST:PORT TOKEN CA_FILE LINK. It trusts the file as a person would have
it trusted, opens the link as a person would, and is driven over its DevTools protocol."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile

import websockets.sync.client

endpoint, token, ca_file, link = sys.argv[1:]

PATIENCE = 60


@contextlib.contextmanager
def browser():
    with tempfile.TemporaryDirectory(prefix="pl-browser-", ignore_cleanup_errors=True) as home:
        store = f"sql:{home}/.pki/nssdb"
        os.makedirs(f"{home}/.pki/nssdb")
        for arguments in ["-N", "--empty-password"], ["-A", "-n", "pilotlight", "-t", "C,,", "-i", ca_file]:
            subprocess.run(["certutil", "-d", store, *arguments], check=True, stdin=subprocess.DEVNULL)
        # Its own sandbox wants what root in a container does not have; the pages it shows are ours.
        process = subprocess.Popen(
            ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
             "--remote-debugging-port=0", f"--user-data-dir={home}/profile", "about:blank"],
            env={**os.environ, "HOME": home}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True)
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if listening := re.search(r"DevTools listening on (ws://\S+)", line):
                    break
            else:
                raise AssertionError(f"no browser: {said}")
            usual = {"max_size": None, "proxy": None, "open_timeout": PATIENCE}
            with websockets.sync.client.connect(listening[1], **usual) as socket:
                yield Page(socket)
        finally:
            process.kill()
            process.wait()


class Page:
    """A tab."""

    def __init__(self, socket):
        self.socket, self.number, self.session = socket, 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters, **self.session}))
        while True:
            answer = json.loads(self.socket.recv(PATIENCE))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of an async function of this body."""
        done = self.call("Runtime.evaluate", expression=f"(async () => {{{script}}})()", awaitPromise=True,
                         returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def show(self, url):
        shown = self.call("Page.navigate", url=url)
        assert "errorText" not in shown, shown
        self.run("document.readyState === 'complete' || await new Promise((done) => addEventListener('load', done))")


# A page of any origin may open a WebSocket, and can name the token in no other way than this.
SOCKET = """
const opened = (offers) => new Promise((done, failed) => {
    const socket = new WebSocket(`wss://ENDPOINT/`, offers);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => done(socket);
    socket.onclose = (event) => failed(new Error(`closed with ${event.code}`));
});
const answered = (socket, message) => new Promise((done, failed) => {
    socket.onmessage = (event) => done(event.data);
    socket.onclose = (event) => failed(new Error(`closed with ${event.code}`));
    socket.send(message);
});
const closed = (socket) => new Promise((done) => {
    socket.onclose = (event) => done([event.code, event.wasClean]);
    socket.close(1000, "enough");
});
const marker = "lambda-microvms";
const offers = [marker, `${marker}.authentication.TOKEN`, `${marker}.port.8080`];
""".replace("ENDPOINT", endpoint).replace("TOKEN", token)


def web_sockets(page):
    seen = page.run(SOCKET + """
    const plain = await opened(offers);
    const chat = await opened([...offers, "chat"]);
    const large = new Uint8Array(1 << 20).map((_, at) => at * 7);
    const back = new Uint8Array(await answered(chat, large));
    const seen = {
        chosen: [plain.protocol, chat.protocol],
        offered: [await answered(plain, "what was offered?"), await answered(chat, "what was offered?")],
        text: await answered(chat, "Grüße ☀"),
        large: back.length === large.length && back.every((byte, at) => byte === large[at]),
        closed: [await closed(plain), await closed(chat)],
    };
    seen.refused = await opened(offers.with(1, `${marker}.authentication.nonsense`)).catch((error) => error.message);
    return seen;
    """)
    assert seen == {
        "chosen": ["lambda-microvms", "chat"],
        "offered": ["nothing", "chat"],
        "text": "Grüße ☀",
        "large": True,
        "closed": [[1000, True]] * 2,
        # What a browser says of any refusal.
        "refused": "closed with 1006",
    }, seen


def by_headers(page):
    """A page of the app's, as an extension that adds headers shows it."""
    page.call("Network.enable")
    page.call("Network.setExtraHTTPHeaders", headers={"X-aws-proxy-auth": token, "X-aws-proxy-port": "8081"})
    page.show(f"https://{endpoint}/")
    works(page)
    page.call("Network.setExtraHTTPHeaders", headers={})


def by_link(page):
    """The same page, as whoever was sent a link sees it."""
    page.show(f"https://{endpoint}/")
    assert page.run("return document.body.innerText") == "Request missing authentication"
    page.show(link)
    # The address that is left, and goes along with whatever the page leads to, has no token.
    assert page.run("return location.href") == f"https://{endpoint}/?from=link"
    works(page)


def works(page):
    """The page hears events of its own origin. The server sends one once the one before was heard: nothing is held back."""
    seen = page.run("""
    const heard = [];
    const source = new EventSource("/events");
    source.addEventListener("count", async (event) => {
        heard.push([event.lastEventId, event.data]);
        await fetch("/heard", {method: "POST"});
    });
    await new Promise((done) => source.addEventListener("last", done));
    source.close();
    return {title: document.title, cookie: document.cookie, heard};
    """)
    # Its cookies are the app's alone.
    assert seen == {"title": "a page", "cookie": "app=its own", "heard": [["0", "n0"], ["1", "n1"], ["2", "n2"]]}, seen


with browser() as page:
    web_sockets(page)
    by_headers(page)
    by_link(page)
print("all shown")
