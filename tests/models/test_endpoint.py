"""An OpenAI-compatible endpoint, with recorded answers in place of a network."""

import gzip
import json
from typing import Any

import pytest

from fedquilt.core.endpoint import Endpoint
from fedquilt.core.errors import ConfigError, EndpointError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.models.endpoint import MOST_BYTES, Writer

httpx = pytest.importorskip("httpx")

KEY = "sk-hidden-0123456789"
PLACE = Endpoint("https://host.test/v1/", "large", "TEST_KEY", retries=2, concurrency=2)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def said(text: Any) -> Any:
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


def refused(status: int, code: str = "", **headers: str) -> Any:
    words = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": code}}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=words, headers=sent)


def writer(*answers: Any, endpoint: Endpoint = PLACE) -> tuple[Writer, list[Any], list[float]]:
    """A writer that is given these answers one after the other, what it asked, and how long it waited."""
    left, asked, waited = list(answers), [], []

    def answer(request: Any) -> Any:
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return Writer(endpoint, transport=httpx.MockTransport(answer), wait=waited.append), asked, waited


def written(own: Writer, prompts: list[str], **settings: Any) -> list[str]:
    return own.complete(Order({}, rng=Rng(3)), None, prompts, **settings)


def test_a_question_is_asked_as_a_chat_completion() -> None:
    own, asked, _ = writer(said("  3 + 4 = 7\n"))
    assert written(own, ["3 + 4 ="], new_tokens=9) == ["3 + 4 = 7"]
    (request,) = asked
    assert (str(request.url), request.method) == ("https://host.test/v1/chat/completions", "POST")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    body = json.loads(request.content)
    assert body.pop("seed") == Rng(3).child("endpoint").integer(31)
    assert body == {
        **{"model": "large", "temperature": 0.0, "max_tokens": 9},
        "messages": [{"role": "system", "content": PLACE.system}, {"role": "user", "content": "3 + 4 ="}],
    }


def test_answers_are_in_the_order_of_the_questions() -> None:
    def answer(request: Any) -> Any:
        return said(json.loads(request.content)["messages"][1]["content"].upper())

    own = Writer(PLACE, transport=httpx.MockTransport(answer))
    assert written(own, [f"q{number}" for number in range(9)]) == [f"Q{number}" for number in range(9)]
    assert written(own, []) == []


def test_a_busy_endpoint_is_asked_again_and_waited_for() -> None:
    own, asked, waited = writer(refused(429, retry_after="7"), refused(503), said("late"))
    assert written(own, ["q"]) == ["late"]
    assert (len(asked), waited) == (3, [7.0, 1.0])
    own, asked, waited = writer(httpx.ConnectError("no route"), said("late"))
    assert written(own, ["q"]) == ["late"]
    assert waited == [0.5]


def unsupported(parameter: Any, code: str = "unsupported_parameter") -> Any:
    words = f"Unsupported parameter: '{parameter}' is not supported with this model."
    error = {"message": words, "type": "invalid_request_error", "param": parameter, "code": code}
    return httpx.Response(400, json={"error": error})


def test_a_refused_parameter_is_replaced_or_left_out_and_not_sent_again() -> None:
    """What newer models of OpenAI answer to max_tokens, and those that reason to a temperature."""
    own, asked, waited = writer(
        unsupported("max_tokens"), unsupported("temperature", "unsupported_value"), said("7"), said("8")
    )
    assert written(own, ["q"], new_tokens=9) == ["7"]
    assert written(own, ["p"], new_tokens=9) == ["8"]
    bodies = [json.loads(request.content) for request in asked]
    assert [body.keys() - {"model", "messages"} for body in bodies] == [
        {"temperature", "max_tokens", "seed"},
        {"temperature", "max_completion_tokens", "seed"},
        {"max_completion_tokens", "seed"},
        {"max_completion_tokens", "seed"},
    ]
    assert {body["max_completion_tokens"] for body in bodies[1:]} == {9}
    assert waited == []


@pytest.mark.parametrize("parameter", ["messages", "max_completion_tokens", None, 3, ["max_tokens"], "seed " * 9])
def test_a_refusal_of_anything_else_is_final(parameter: Any) -> None:
    own, asked, _ = writer(unsupported("max_tokens"), unsupported(parameter))
    with pytest.raises(EndpointError, match=r"answered 400 \(unsupported_parameter\)"):
        written(own, ["q"])
    assert len(asked) == 2


def test_an_endpoint_that_refuses_a_parameter_for_ever_is_not_asked_for_ever() -> None:
    own, asked, _ = writer(*[unsupported("seed")] * 2)
    with pytest.raises(EndpointError, match="answered 400"):
        written(own, ["q"])
    assert len(asked) == 2


def test_after_the_last_attempt_or_a_lasting_refusal_it_says_what_helps() -> None:
    own, asked, _ = writer(*[refused(500)] * 3)
    with pytest.raises(EndpointError, match=r"answered 500 after 3 attempts; raise server.endpoint.retries or timeout"):
        written(own, ["q"])
    assert len(asked) == 3
    own, asked, _ = writer(refused(401, "invalid_api_key"))
    with pytest.raises(EndpointError, match=r"401 \(invalid_api_key\); check the key in .* TEST_KEY") as caught:
        written(own, ["q"])
    assert len(asked) == 1
    assert KEY not in f"{caught.value!r} {caught.getrepr(showlocals=False)}"
    own, _, _ = writer(*[httpx.ReadTimeout("slow")] * 3)
    with pytest.raises(EndpointError, match=r"no answer \(ReadTimeout: slow\) after 3 attempts"):
        written(own, ["q"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"x" * (MOST_BYTES + 1), "more than 1048576 bytes"),
        (b"\xff", "is no chat completion"),
        (b"[" * 100_000, "is no chat completion"),
        (b'{"choices": []}', "is no chat completion"),
        (b'{"choices": [{"message": "text"}]}', "is no chat completion"),
        (b'{"choices": [{"message": {"content": ["text"]}}]}', "holds list and no text"),
    ],
)
def test_an_answer_that_is_no_text_is_refused(content: bytes, problem: str) -> None:
    own, asked, _ = writer(httpx.Response(200, content=content))
    with pytest.raises(EndpointError, match=problem):
        written(own, ["q"])
    assert len(asked) == 1


def test_a_compressed_answer_is_refused() -> None:
    packed = gzip.compress(b"x" * 1000)
    own, asked, _ = writer(httpx.Response(200, content=packed, headers={"content-encoding": "gzip"}))
    with pytest.raises(EndpointError, match="an answer is compressed, which was not asked for"):
        written(own, ["q"])
    assert asked[0].headers["accept-encoding"] == "identity"


def test_a_redirect_is_not_followed_and_a_refusal_of_the_model_is_empty() -> None:
    own, asked, _ = writer(httpx.Response(302, headers={"location": "https://elsewhere.test/"}))
    with pytest.raises(EndpointError, match="answered 302"):
        written(own, ["q"])
    assert len(asked) == 1
    assert written(writer(said(None))[0], ["q"]) == [""]


def test_the_key_comes_of_the_environment_and_stands_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    own = writer(said("x"))[0]
    assert KEY not in repr(own)
    monkeypatch.setenv("TEST_KEY", "kéy")
    with pytest.raises(ConfigError, match="'TEST_KEY': this environment variable holds signs") as caught:
        written(own, ["q"])
    assert "kéy" not in str(caught.value)
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ConfigError, match="key_env = 'TEST_KEY': this environment variable is not set"):
        written(own, ["q"])
    free, asked, _ = writer(said("x"), endpoint=Endpoint("http://10.0.0.7:8000/v1", "own"))
    written(free, ["q"])
    assert "authorization" not in asked[0].headers


@pytest.mark.parametrize(
    ("url", "key_env", "problem"),
    [
        ("ftp://host/v1", None, "give an address as in https"),
        ("https://host/v1?key=1", None, "give an address as in https"),
        ("https://user:secret@host/v1", None, "url holds a name or password"),
        ("https://host:port/v1", None, "url is no address"),
        ("http://host/v1", "KEY", "the key could be read on its way"),
        ("https://host/v1", "sk-0123", "key_env is not the name of an environment variable"),
    ],
)
def test_an_address_that_is_none_or_lets_a_key_be_read_is_refused(url: str, key_env: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        Endpoint(url, "large", key_env)
    assert "secret" not in str(caught.value)
    assert "sk-0123" not in str(caught.value)
    assert Endpoint("http://127.0.0.1:8000/v1", "large", "KEY").key_env == "KEY"


def test_it_writes_texts_and_nothing_else() -> None:
    own: Any = writer()[0]
    with pytest.raises(TrainingError, match="an endpoint, which writes texts alone; it has no 'log_probs'"):
        own.log_probs(Order({}), None, ["q"], ["a"])
    assert Writer(PLACE, asks=False).complete(Order({}), None, ["q", "r"]) == ["", ""]
