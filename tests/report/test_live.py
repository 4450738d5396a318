"""The live page over real HTTP: events of a run that goes on, many readers, slow ones, and what is left afterwards."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from fedquilt.experiment.run import run
from fedquilt.report import live
from fedquilt.report.following import FINISHED, RUNNING, Following, Page, Seen
from fedquilt.report.guard import allowed_hosts
from fedquilt.report.live import Live, serve

opened = []
"""The connections of a test, which end with its server."""


class Scene:
    """What ``Following`` is, of a run that the test makes up."""

    def __init__(self, content=b"<p>report", policy="default-src 'none'"):
        self.seen, self.content, self.policy, self.made = Seen(1, RUNNING, "round 1"), content, policy, 0

    def look(self):
        return self.seen

    def page(self):
        self.made += 1
        return Page(self.content, self.policy)


@contextmanager
def served(following, told=None):
    """The port of a server in a thread, which ends once the runs are finished."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    options = {"every": 0.02, "told": told, "until_done": True}
    server = threading.Thread(target=serve, args=(following, listening, "127.0.0.1"), kwargs=options)
    server.start()
    yield port
    if isinstance(following, Scene):
        following.seen = Seen(99, FINISHED, "finished")
    server.join(20)
    assert not server.is_alive()
    while opened:
        opened.pop().close()
    with pytest.raises(ConnectionRefusedError):  # nothing listens afterwards
        socket.create_connection(("127.0.0.1", port), timeout=2)


def wait_until(there):
    """Wait for what another thread does; whoever waits too long finds out by its own assertions."""
    end = time.monotonic() + 20
    while not there() and time.monotonic() < end:
        time.sleep(0.01)


def asked(port, path="/", host=None, method="GET"):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    opened.append(connection)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    opened.append(answer)
    return answer


def events(port, found):
    """Add the events of a stream to a list until the stream ends."""
    answer = asked(port, "/events")
    assert answer.getheader("content-type").startswith("text/event-stream")
    for line in answer:
        if line.startswith(b"data: "):
            found.append(json.loads(line[6:]))


def test_a_run_of_five_rounds_is_followed_event_by_event_to_its_end(config, tmp_path):
    folder, found, states = tmp_path / "run", [], []
    with served(Following([folder]), told=lambda seen: states.append(seen.state)) as port:
        reader = threading.Thread(target=events, args=(port, found))
        reader.start()

        class Slowly:
            def round(self, line):
                wanted = f"round {line['round'] + 1} of 5"
                wait_until(lambda: any(wanted in one["text"] for one in found))

        wait_until(lambda: states)  # that nothing is there has been seen before the run begins
        run(config("rounds=5"), folder, Slowly())
        reader.join(20)
    texts = [one["text"] for one in found]
    for number in range(1, 6):
        assert any(f"round {number} of 5: loss " in text for text in texts), texts
    assert found[0]["state"] == "waiting"
    assert found[-1]["state"] == "finished"
    assert "finished after 5 rounds" in texts[-1]
    assert [one["version"] for one in found] == sorted({one["version"] for one in found})
    assert states == ["waiting", "running", "finished"]


def test_many_readers_share_one_page_and_strangers_get_none():
    scene = Scene()
    with served(scene) as port:
        streams = [asked(port, "/events") for _ in range(20)]
        pages = [asked(port, f"/page?version={number}") for number in range(20)]
        assert [page.read() for page in pages] == [b"<p>report"] * 20
        assert scene.made == 1
        assert pages[0].getheader("content-security-policy") == "default-src 'none'; frame-ancestors 'self'"
        assert pages[0].getheader("x-frame-options") == "SAMEORIGIN"
        for path in ("/", "/page", "/events", "/live.js", "/nothing"):
            for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1:{port + 1}"):
                assert asked(port, path, host).status == 403
        assert asked(port, host=f"localhost:{port}").status == 200
        assert asked(port, "/page", method="POST").status == 405
        assert asked(port, "/../live.py").status == 404
        scene.seen = Seen(2, RUNNING, "round 2")
        heard = [[next(stream) for _ in range(8)] for stream in streams]  # four lines an event
        assert all(json.loads(lines[6][6:])["text"] == "round 2" for lines in heard)
        assert asked(port, "/page").read() == b"<p>report"
        assert scene.made == 2


def test_a_reader_who_does_not_read_holds_nobody_up_and_is_sent_no_more_than_fits(monkeypatch):
    handed = []

    def counted(content):
        for chunk in chunks(content):
            handed.append(len(chunk))
            yield chunk

    chunks = live._chunks
    monkeypatch.setattr(live, "_chunks", counted)
    with served(Scene(b"x" * (1 << 25))) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(f"GET /page HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        wait_until(lambda: handed)
        time.sleep(0.3)
        assert 0 < sum(handed) < 1 << 24
        assert asked(port, "/live.css").status == 200


def test_connections_without_a_request_are_closed_and_cannot_shut_others_out(monkeypatch):
    monkeypatch.setattr(live, "_MOST", 4)
    monkeypatch.setattr(live, "_IDLE", 0.3)

    def is_closed(connection):
        try:
            return connection.recv(4096) == b""
        except ConnectionResetError:
            return True

    with served(Scene()) as port:
        stream = asked(port, "/events")  # one that reads keeps its place
        idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        idle[0].sendall(b"GET /page HTTP/1.1\r\nHost: local")  # half a request is none
        assert asked(port, "/live.css").status == 503
        assert all(map(is_closed, idle))
        for connection in idle:
            connection.close()
        answered = []
        wait_until(lambda: answered.append(asked(port, "/live.css").status) or answered[-1] == 200)
        assert answered[-1] == 200
        assert next(stream).startswith(b"event: changed")
        kept = HTTPConnection("127.0.0.1", port, timeout=20)  # asked again in time, then let be
        opened.append(kept)
        for _ in range(2):
            kept.request("GET", "/live.css")
            kept.getresponse().read()
        assert is_closed(kept.sock)


def test_the_page_around_the_report_has_only_files_of_its_own(finished):
    app = Live(Following([finished])).app(allowed_hosts("127.0.0.1", 80))

    async def answers():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return [await client.get(path) for path in ("/", "/live.js", "/page")]

    shell, script, page = asyncio.run(answers())
    assert shell.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in shell.headers["content-security-policy"]
    assert 'src="live.js"' in shell.text
    assert "<style" not in shell.text
    assert script.headers["content-type"].startswith("text/javascript")
    assert page.status_code == 200
    assert "<h1" in page.text
    assert "tiny" in page.text
    assert page.headers["content-security-policy"].endswith("; frame-ancestors 'self'")
    assert page.headers["cache-control"] == "no-store"


CHROMIUM = "/usr/bin/chromium"

REPORT = """<!doctype html>
<html lang="en"><head><title>report</title></head><body>
<form><input name="words"></form><details><summary>config</summary><p>text</p></details>
{tall}<section id="there"><h2>There</h2></section><p id="end" {style}>round {round}</p></body></html>
"""


def report(round, lines):
    tall = "<p>line</p>" * lines
    return REPORT.format(tall=tall, round=round, style='style="margin-top: 4000px"').encode()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def tab(browser):
    """A tab, with what went wrong in it."""
    page = browser.new_page(viewport={"width": 390, "height": 700})
    page.wrong = []
    page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    return page


@pytest.mark.slow
def test_scroll_theme_and_what_was_opened_stay_when_a_round_is_finished(tab):
    scene = Scene(report(1, 100), "default-src 'none'; style-src 'unsafe-inline'")
    with served(scene) as port:
        tab.goto(f"http://127.0.0.1:{port}/")
        frame = tab.frame_locator("iframe:not(.next)")
        frame.locator("text=round 1").wait_for(state="attached")
        frame.locator("summary").click()
        frame.locator("details[open]").wait_for()
        frame.locator("input").fill("Chur")
        document = tab.frames[-1]
        document.evaluate("document.documentElement.dataset.theme = 'dark'; scrollTo(0, there.offsetTop + 1500)")
        before = document.evaluate("there.getBoundingClientRect().top")
        scene.content, scene.seen = report(2, 130), Seen(2, RUNNING, "round 2 of 5")
        frame.locator("text=round 2").wait_for(state="attached")
        tab.locator("text=round 2 of 5").wait_for()
        (document,) = [one for one in tab.frames if one.parent_frame]
        assert document.evaluate("there.getBoundingClientRect().top") == pytest.approx(before, abs=2)
        assert document.evaluate("document.documentElement.dataset.theme") == "dark"
        assert frame.locator("details").get_attribute("open") is not None
        assert frame.locator("input").input_value() == "Chur"
        tab.get_by_label("follow").uncheck()
        scene.content, scene.seen = report(3, 100), Seen(3, RUNNING, "round 3 of 5")
        tab.locator("text=round 3 of 5").wait_for()
        assert "round 2" in frame.locator("#end").inner_text()
        tab.get_by_label("follow").check()
        frame.locator("text=round 3").wait_for(state="attached")
        assert tab.wrong == []
    tab.locator("[role=status]", has_text="finished").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_report_of_a_real_run_is_shown_without_an_error(tab, finished):
    with served(Following([finished])) as port:
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.frame_locator("iframe:not(.next)").locator("h1").wait_for()
        assert "finished after 3 rounds" in tab.locator("[role=status]").inner_text()
        assert tab.wrong == []
