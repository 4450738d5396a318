"""A language model behind an OpenAI-compatible endpoint: it writes texts, and nothing else.

Answers are untrusted: bounded in size, decoded strictly, and never evaluated. The key is read from the environment when
texts are asked for, so that no object of a run holds it. What an endpoint says of a refused request is not repeated, as
it may hold parts of the key.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from fedquilt.core.endpoint import Endpoint
from fedquilt.core.errors import ConfigError, EndpointError, TrainingError
from fedquilt.core.server import SERVER
from fedquilt.core.shell import command, install_extra
from fedquilt.core.tasks import writing_task
from fedquilt.core.types import Budget, ClientId, Memory, Order, Profile

MOST_BYTES = 1 << 20
"""The most bytes of an answer."""

LONGEST_WAIT = 60.0
"""The most seconds between two attempts of a request."""

_AGAIN = (408, 429)  # and all of 5xx

_INSTEAD: Mapping[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""What takes the place of a parameter that an endpoint refuses by its name; None if it is left out."""


class _Answer(NamedTuple):
    """The status and content of an answer, and the seconds after which the endpoint wants to be asked again."""

    status: int
    content: bytes
    after: float = 0.0


@dataclass(frozen=True)
class Writer:
    """What a method is given as ``ServerModel.worker`` of an endpoint: a worker that completes texts.

    Attributes
    ----------
    endpoint
        The endpoint.
    asks
        Whether it may be asked; without, every text is empty, as in a plan.
    transport
        The transport of requests, an ``httpx.BaseTransport``; None for the network.
    wait
        Waits for seconds.
    unknown
        The parameters that the endpoint has refused, which it is not sent again.
    """

    endpoint: Endpoint
    asks: bool = True
    transport: Any = None
    wait: Callable[[float], None] = time.sleep
    unknown: set[str] = field(default_factory=set, compare=False)

    @property
    def id(self) -> ClientId:
        """The number of the server's own clients."""
        return SERVER

    @property
    def profile(self) -> Profile:
        """A profile without rows and without blocks to train."""
        return Profile(SERVER, 0, f"endpoint:{self.endpoint.name}", Budget(0), writing_task())

    def complete(
        self,
        order: Order,
        memory: Memory | None,
        prompts: Sequence[str],
        *,
        new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> list[str]:
        """The endpoint's completion of each prompt, without white space around it; "" where it refuses to answer.

        Parameters
        ----------
        order, memory
            The order's random stream gives the seed that the endpoint is asked to use.
        prompts
            The texts to complete.
        new_tokens
            The largest number of tokens of a completion, as the endpoint counts them.
        temperature
            0 for greedy decoding.

        Raises
        ------
        EndpointError
            if a request is refused, or not answered with a text.
        """
        if not self.asks or not prompts:
            return [""] * len(prompts)
        asked = {"model": self.endpoint.name, "temperature": temperature, "max_tokens": new_tokens}
        asked["seed"] = order.rng.child("endpoint").integer(31)
        bodies = [{**asked, "messages": self._messages(prompt)} for prompt in prompts]
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if (key := key_of(self.endpoint)) else {}
        httpx = library()
        at_once = min(self.endpoint.concurrency, len(bodies))
        with (
            httpx.Client(transport=self.transport, timeout=self.endpoint.timeout, headers=headers) as client,
            ThreadPoolExecutor(at_once) as threads,
        ):
            waiting = [threads.submit(self._text, client, body) for body in bodies]
            try:
                return [one.result() for one in waiting]
            finally:
                threads.shutdown(wait=False, cancel_futures=True)  # after an error the others are not asked any more

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TrainingError(f"the server's model is an endpoint, which writes texts alone; it has no '{name}'")

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        said = (("system", self.endpoint.system), ("user", prompt))
        # what UTF-8 cannot hold would be refused as JSON
        return [{"role": role, "content": text.encode("utf-8", "replace").decode()} for role, text in said]

    def _text(self, client: Any, body: dict[str, Any]) -> str:
        """The text of one answer, after as many attempts as it takes."""
        for attempt in range(self.endpoint.retries + 1):
            failure, answer = "", _Answer(0, b"")
            try:
                answer = self._understood(client, body)
            except library().RequestError as error:
                failure = f"{type(error).__name__}: {error}"
            if answer.status == 200:
                return self._read(answer.content)
            lasting = answer.status and answer.status not in _AGAIN and answer.status < 500
            if lasting or attempt == self.endpoint.retries:
                raise EndpointError(self._refused(answer, failure, attempt + 1)) from None
            self.wait(min(LONGEST_WAIT, max(answer.after, 0.5 * 2**attempt)))
        raise AssertionError("the last attempt returns or raises")

    def _understood(self, client: Any, body: dict[str, Any]) -> _Answer:
        """One attempt; parameters that the endpoint refuses are replaced or left out, each of them once."""
        while True:
            sent = _without(body, self.unknown)
            answer = self._asked(client, sent)
            refused = _parameter(answer) if answer.status == 400 else ""
            if refused not in _INSTEAD or refused not in sent:
                return answer
            self.unknown.add(refused)

    def _asked(self, client: Any, body: dict[str, Any]) -> _Answer:
        """One attempt; an answer that is too long or too late is cut off."""
        until, content = time.monotonic() + self.endpoint.timeout, b""
        with client.stream("POST", f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body) as response:
            if (
                response.headers.get("content-encoding", "identity") != "identity"
            ):  # a small answer may unpack to a huge one
                raise EndpointError(f"{self._where}: an answer is compressed, which was not asked for")
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise EndpointError(f"{self._where}: an answer has more than {MOST_BYTES} bytes")
                if time.monotonic() > until:
                    raise library().ReadTimeout("the answer has no end")
            after = response.headers.get("retry-after", "")
            return _Answer(response.status_code, content, float(after) if re.fullmatch(r"\d{1,9}", after) else 0.0)

    def _read(self, content: bytes) -> str:
        """The text in an answer."""
        try:
            text = json.loads(content.decode("utf-8"))["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise EndpointError(f"{self._where}: an answer is no chat completion") from None
        if text is None:  # the model refused
            return ""
        if not isinstance(text, str):
            raise EndpointError(f"{self._where}: an answer holds {type(text).__name__} and no text")
        return text.strip()

    @property
    def _where(self) -> str:
        return f"server.endpoint.url = '{self.endpoint.url}'"

    def _refused(self, answer: _Answer, failure: str, attempts: int) -> str:
        """Why a request failed, and what may help."""
        helps = {
            401: f"check the key in the environment variable {self.endpoint.key_env}; key_env names it",
            403: f"check what the key in the environment variable {self.endpoint.key_env} may do",
            404: f"check url, and name = '{self.endpoint.name}'",
        }
        what = f"answered {answer.status}{_code(answer.content)}" if answer.status else f"no answer ({failure})"
        often = f" after {attempts} attempts" if attempts > 1 else ""
        advice = helps.get(answer.status, "raise server.endpoint.retries or timeout, or try again later")
        on = command("run", "--resume", "RUN")
        return f"{self._where}: {what}{often}; {advice}. Finished rounds are kept; go on with: {on}"


def key_of(endpoint: Endpoint) -> str | None:
    """The key in the environment; None if the endpoint needs none.

    Raises
    ------
    ConfigError
        if the variable is not set, or holds what cannot be a key; its value is not shown.
    """
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"server.endpoint.key_env = '{endpoint.key_env}': this environment variable is not set; set it to the "
            "endpoint's key, or leave key_env out for an endpoint without keys"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(
            f"server.endpoint.key_env = '{endpoint.key_env}': this environment variable holds signs that no key has"
        )
    return key


def library() -> Any:
    """The package httpx.

    Raises
    ------
    ConfigError
        if it is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            "server.endpoint: endpoints are asked by httpx, which is not installed; install it with: "
            f"{install_extra('endpoint')}"
        ) from error
    return httpx


def _without(body: Mapping[str, Any], unknown: Collection[str]) -> dict[str, Any]:
    """The request with what takes the place of these parameters."""
    names = {name: _INSTEAD[name] if name in unknown else name for name in body}
    return {own: body[name] for name, own in names.items() if own is not None}


def _parameter(answer: _Answer) -> str:
    """The name of the parameter that an answer refuses; "" if it names none."""
    return _word(_error(answer.content).get("param"))


def _code(content: bytes) -> str:
    """The error's code in an answer, in brackets, if it is a plain word; an answer's words are not repeated."""
    error = _error(content)
    code = _word(error.get("code") or error.get("type"))
    return f" ({code})" if code else ""


def _error(content: bytes) -> dict[str, Any]:
    """What an answer says of an error; empty if that is nothing readable."""
    try:
        error = json.loads(content.decode("utf-8"))["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _word(value: object) -> str:
    """The value if it is a plain word, else ""."""
    return value if isinstance(value, str) and re.fullmatch(r"[a-z_]{1,40}", value) else ""
