"""A client of OpenAI-compatible chat endpoints that copes with what they do: busy, slow, broken, down."""

from __future__ import annotations

import email.utils
import math
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import httpx

from mixlogit_align.alignment.checks import counts, not_negative, positive, require
from mixlogit_align.errors import MixlogitError, explain

BUSY = {408, 409, 425, 429}  # and every status from 500
UNUSABLE = {401, 402, 403, 404, 405}  # the key, the account or the address: the next request fares no better
HIDDEN = "[key]"


class EndpointError(MixlogitError, RuntimeError):
    """An endpoint cannot be used; what it has answered so far is kept."""


class NoAnswer(Exception):
    """One request stays without an answer: "no_answer" or "rejected_request"."""

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail


class Stopped(NoAnswer):
    """A request was not sent, or not again, because all is to end."""

    def __init__(self) -> None:
        super().__init__("no_answer", "stopped")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Where a model answers, and how to ask it.

    Parameters
    ----------
    url : str
        Up to and without ``/chat/completions``, e.g. "http://localhost:8000/v1".
    model : str
        The endpoint's name for it.
    key_variable : str or None
        The environment variable that holds the key; None where the endpoint asks for none. The key is read when it is
        sent, and appears in nothing that is kept, logged or raised.
    temperature : float
    max_tokens : int
        Of an answer.
    seed : int or None
        Sent where given; not every endpoint heeds it.
    requests_per_minute : float or None
        No more are begun; None for no limit.
    concurrency : int
        Requests under way at a time.
    timeout_seconds : float
        For an answer.
    max_retries : int
        Of a request that meets 408, 409, 425, 429, 5xx, a timeout, a broken connection or an answer that is no JSON.
    first_wait_seconds, longest_wait_seconds : float
        Before the first retry; it doubles from one to the next up to the longest. An endpoint that says ``Retry-After``
        is waited for as long as it asks; beyond the longest, the request is given up.
    input_price, output_price : float or None
        Per million tokens, in any currency.
    """

    url: str
    model: str
    key_variable: str | None = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    requests_per_minute: float | None = None
    concurrency: int = 4
    timeout_seconds: float = 60.0
    max_retries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        try:
            parts = httpx.URL(self.url)
        except httpx.InvalidURL:  # whose message may hold a key
            parts = httpx.URL()
        plain = parts.scheme in ("http", "https") and parts.host and not (parts.query or parts.userinfo)
        require(
            bool(plain),
            "url",
            f"{parts.scheme}://{parts.host}{parts.path}",  # a key may hide in what is left out
            "http:// or https://, a host and a path, without a user, a password or a query",
            f"the key in the environment variable {self.key_variable or 'that key_variable names'}",
        )
        counts(max_tokens=self.max_tokens, concurrency=self.concurrency)
        counts(0, max_retries=self.max_retries)
        positive(timeout_seconds=self.timeout_seconds)
        not_negative(temperature=self.temperature)
        not_negative(first_wait_seconds=self.first_wait_seconds, longest_wait_seconds=self.longest_wait_seconds)
        if self.requests_per_minute is not None:
            positive(requests_per_minute=self.requests_per_minute)
        for name in ("input_price", "output_price"):
            if getattr(self, name) is not None:
                not_negative(**{name: getattr(self, name)})
        require(
            (self.input_price is None) == (self.output_price is None),
            "input_price, output_price",
            (self.input_price, self.output_price),
            "both or neither",
        )

    def require_key(self) -> None:
        """See that the environment variable of the key holds one.

        Raises
        ------
        EndpointError
            Without showing what it holds.
        """
        if self.key_variable is None:
            return
        key = os.environ.get(self.key_variable, "")
        # a key that no header may hold would be shown by the errors about it
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise EndpointError(
                explain(
                    f"environment variable {self.key_variable}",
                    got="a text with blanks or characters that no key has" if key else "nothing",
                    expected=f"the key of {self.url}",
                    hint=f"`export {self.key_variable}=...`, or key_variable=None (--no-key) where none is asked for",
                )
            )

    def body(self, messages: Sequence[Mapping[str, str]], **options: Any) -> dict[str, Any]:
        """What is sent for a conversation; ``options`` go beside the settings, or replace them."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **seed,
            **options,
        }

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """In the currency of the prices; None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class RateLimit:
    """Begins requests at even distances, from any number of threads."""

    def __init__(self, per_minute: float | None, wait: Callable[[float], object], clock: Callable[[], float]) -> None:
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._wait, self._clock, self._lock = wait, clock, threading.Lock()
        self._next = -math.inf

    def __call__(self) -> None:
        """Wait for the next turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._wait(turn - now)


class _Bearer(httpx.Auth):
    """Adds the key to a request as it is sent; holds the name of its variable alone."""

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {os.environ[self.variable]}"
        yield request


class Endpoint:
    """Asks a chat endpoint; safe to call from several threads. A context manager.

    Parameters
    ----------
    config : EndpointConfig

    Raises
    ------
    EndpointError
        On entering, if the environment variable of the key is not set, or holds what cannot be one.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.num_requests = self.num_retries = 0
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self._turn = RateLimit(config.requests_per_minute, self._stopped.wait, time.monotonic)
        self._jitter = random.Random()
        self._client: httpx.Client | None = None

    def __enter__(self) -> Endpoint:
        self.config.require_key()
        variable = self.config.key_variable
        self._client = httpx.Client(
            timeout=self.config.timeout_seconds,
            auth=None if variable is None else _Bearer(variable),
            limits=httpx.Limits(max_connections=self.config.concurrency),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._client is not None:
            self._client.close()

    def stop(self) -> None:
        """End all waiting: requests that are not under way stay without an answer."""
        self._stopped.set()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask once, and again where the endpoint is busy or broken.

        Parameters
        ----------
        body : mapping
            See `EndpointConfig.body`.

        Returns
        -------
        dict
            ``content`` (str), ``refusal`` (str or None), ``finish_reason`` (str or None), ``input_tokens`` and
            ``output_tokens`` (int, as the endpoint counts them, or None), ``top_logprobs`` (pairs of token and
            log-probability at the first place, or None).

        Raises
        ------
        NoAnswer
            If this request is rejected, or gets no answer within the retries; `Stopped` after `stop`.
        EndpointError
            If no request can get one: the key, the account or the address is wrong. All others are stopped.
        """
        assert self._client is not None, "an Endpoint is a context manager"
        for attempt in range(self.config.max_retries + 1):
            self._turn()
            if self._stopped.is_set():
                raise Stopped
            with self._counting:
                self.num_requests += 1
                self.num_retries += attempt > 0
            asked = None
            try:
                response = self._client.post(f"{self.config.url.rstrip('/')}/chat/completions", json=dict(body))
            except httpx.RequestError as error:
                seen = self.hide(f"{type(error).__name__}: {error}")
            else:
                status = response.status_code
                if status == 200:
                    answer = _answer(response, self.hide)
                    if answer is not None:
                        return answer
                seen = self.hide(f"status {status}: {response.text}")[:200]
                if status in UNUSABLE or 300 <= status < 400:
                    self.stop()
                    raise EndpointError(
                        explain(
                            f"{self.config.url}, model {self.config.model!r}",
                            got=seen,
                            expected="an answer",
                            hint=f"the address, the model's name and the key in {self.config.key_variable}",
                        )
                    )
                if 400 <= status < 500 and status not in BUSY:
                    raise NoAnswer("rejected_request", seen)
                asked = _retry_after(response)
            if asked is not None and asked > self.config.longest_wait_seconds:
                raise NoAnswer("no_answer", f"{seen} (asks to wait for {asked:.0f} s)")
            if attempt < self.config.max_retries:
                self._stopped.wait(self._pause(attempt) if asked is None else asked)
        raise NoAnswer("no_answer", f"{seen}, after {self.config.max_retries} retries")

    def hide(self, text: str) -> str:
        """``text`` without the key, which some endpoints repeat where they refuse it."""
        key = os.environ.get(self.config.key_variable or "", "")
        return text.replace(key, HIDDEN) if key else text

    def _pause(self, attempt: int) -> float:
        """Half to all of the doubled wait, so that several clients do not come back at once."""
        longest = min(self.config.first_wait_seconds * 2.0**attempt, self.config.longest_wait_seconds)
        return longest * self._jitter.uniform(0.5, 1.0)


def _answer(response: httpx.Response, hide: Callable[[str], str]) -> dict[str, Any] | None:
    """The parts of an answer that are kept, their texts without the key; None where it is not one."""
    try:
        content = response.json()
        choice = content["choices"][0]
        message, usage = choice["message"], content.get("usage") or {}
        text, refusal, reason = message.get("content"), message.get("refusal") or None, choice.get("finish_reason")
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        first = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        likeliest = first and [[hide(str(each["token"])), float(each["logprob"])] for each in first]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not all(isinstance(each, str | None) for each in (text, refusal, reason)):
        return None
    return {
        "content": hide(text or ""),
        "refusal": refusal and hide(refusal),
        "finish_reason": reason,
        "input_tokens": counts[0],
        "output_tokens": counts[1],
        "top_logprobs": likeliest or None,
    }


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait: a number or a date; None where it does not say."""
    text = response.headers.get("Retry-After")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
