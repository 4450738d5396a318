"""By which names the live page's server is known, and what every answer has."""

import asyncio
import socket

import pytest

from fedquilt.report.guard import HEADERS, Guard, allowed_hosts, is_loopback


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("127.0.0.1:8712", True),
        ("localhost:8712", True),
        ("LOCALHOST:8712", True),
        ("[::1]:8712", True),
        ("127.0.0.1", False),  # that is port 80
        ("127.0.0.1:80", False),
        ("localhost:8713", False),
        ("evil.example:8712", False),
        ("127.0.0.1.evil.example:8712", False),
        ("localhost.:8712", False),
        ("::1:8712", False),
        ("[localhost]:8712", False),
        ("10.0.0.7:8712", False),
        ("8712", False),
        ("", False),
    ],
)
def test_a_server_on_this_machine_is_known_by_its_addresses_alone(asked, known):
    assert allowed_hosts("127.0.0.1", 8712)(asked) is known


def test_a_server_for_other_machines_is_known_by_addresses_and_never_by_a_foreign_name():
    every = allowed_hosts("0.0.0.0", 9000)
    assert all(map(every, ["10.0.0.7:9000", "[fe80::1]:9000", f"{socket.gethostname()}:9000", "localhost:9000"]))
    assert not every("evil.example:9000")
    one = allowed_hosts("10.0.0.7", 9000)
    assert one("10.0.0.7:9000")
    assert not one("10.0.0.8:9000")
    assert allowed_hosts("127.0.0.1", 80)("localhost")


def test_what_only_this_machine_reaches():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.7", "::", "example.org")] == [False] * 4


def asked(method, *hosts):
    """The status, the headers and the body of an answer through the guard."""
    said = []

    async def app(scope, receive, send):
        head = [(b"x-frame-options", b"SAMEORIGIN")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"secret"})

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": method, "headers": [(b"host", host) for host in hosts]}
    asyncio.run(Guard(app, allowed_hosts("127.0.0.1", 8712))(scope, None, send))
    headers = {name.decode(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], headers, b"".join(one["body"] for one in said[1:])


def test_known_hosts_are_answered_with_all_headers_of_which_an_answer_may_have_its_own():
    status, headers, body = asked("GET", b"localhost:8712")
    assert (status, body) == (200, b"secret")
    assert headers == HEADERS | {"x-frame-options": "SAMEORIGIN"}
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "hosts", "status"),
    [
        ("GET", [b"evil.example:8712"], 403),
        ("GET", [b"localhost:8712", b"evil.example"], 400),
        ("GET", [], 400),
        ("GET", [b"\xff"], 403),
        ("POST", [b"localhost:8712"], 405),
        ("OPTIONS", [b"localhost:8712"], 405),
        ("HEAD", [b"localhost:8712"], 405),
    ],
)
def test_others_get_no_answer_of_the_page(method, hosts, status):
    got, headers, body = asked(method, *hosts)
    assert got == status
    assert b"secret" not in body
    assert headers.items() >= HEADERS.items()
