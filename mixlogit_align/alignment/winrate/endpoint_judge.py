"""A language model behind an endpoint as judge: both orders, cached answers, a cost told before it is incurred."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mixlogit_align.alignment.checks import require
from mixlogit_align.alignment.progress import Progress
from mixlogit_align.alignment.winrate.cache import AnswerCache, fingerprint
from mixlogit_align.alignment.winrate.endpoint import Endpoint, EndpointConfig, EndpointError, NoAnswer, Stopped
from mixlogit_align.alignment.winrate.judges import Verdict, no_verdict
from mixlogit_align.alignment.winrate.pairs import ResponsePair
from mixlogit_align.alignment.winrate.verdicts import FORMS, messages, read_verdict
from mixlogit_align.errors import explain

CHARACTERS_PER_TOKEN = 4.0  # of English text, roughly
GIVE_UP_AFTER = 5  # requests in a row without an answer: the endpoint is down, and waiting for each takes hours
Order = Literal["both", "random"]
FormName = Literal["json", "weighted"]


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What judging will take, before it begins.

    Parameters
    ----------
    num_requests : int
        To be sent, retries aside.
    num_cached : int
        Answered before: they cost nothing.
    input_tokens : int
        At about four characters a token.
    output_tokens : int
        At most: ``max_tokens`` each, one of a weighted verdict.
    cost : float or None
        Of both, in the currency of the prices; None without prices.
    """

    num_requests: int
    num_cached: int
    input_tokens: int
    output_tokens: int
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What judging took.

    Parameters
    ----------
    num_requests, num_retries : int
        Sent, and those of them that were sent again.
    input_tokens, output_tokens : int
        As the endpoint counted them, of the answers that came now.
    num_uncounted : int
        Answers of which it counted none.
    cost : float or None
    """

    num_requests: int
    num_retries: int
    input_tokens: int
    output_tokens: int
    num_uncounted: int
    cost: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One request about a pair."""

    key: str
    body: dict[str, Any]
    swapped: bool


@dataclass(kw_only=True)
class EndpointJudge:
    """Asks a model behind an OpenAI-compatible endpoint.

    Parameters
    ----------
    endpoint : EndpointConfig
    form : {"json", "weighted"}
        "json" asks for a reason and a verdict, ties among them, and takes it as certain. "weighted" asks for a letter
        alone and takes the probability of its token, ``P(A) / (P(A) + P(B))``, as AlpacaEval 2.0 does: finer, for
        endpoints that tell log-probabilities.
    order : {"both", "random"}
        "both" asks about each pair in both orders and takes the mean; a pair needs both verdicts. "random" asks once,
        in an order fixed by ``seed`` and the pair.
    seed : int
        Of the random order.
    cache : path or None
        A file of answers, keyed by the URL and all that is sent: a rerun asks only what has no answer yet. What got no
        answer is not in it, and is asked again. None keeps answers only while this judge lives.
    budget : float or None
        A cost above which judging does not begin; needs prices.
    instructions : str, optional
        To the model, in place of the form's own; its answer is read by that form.

    Attributes
    ----------
    usage : Usage or None
        Of the last call of `judge`.
    """

    endpoint: EndpointConfig
    form: FormName = "json"
    order: Order = "both"
    seed: int = 0
    cache: str | Path | None = None
    budget: float | None = None
    instructions: str | None = None
    usage: Usage | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        require(self.form in FORMS, "form", self.form, "json or weighted", "form='json'")
        require(self.order in ("both", "random"), "order", self.order, "both or random", "order='both'")
        require(
            self.budget is None or self.endpoint.input_price is not None,
            "budget",
            self.budget,
            "none, without prices",
            "input_price and output_price of the endpoint",
        )
        self._memory = AnswerCache(None)

    @property
    def name(self) -> str:
        """The model, the form of its verdicts and the orders in which it sees a pair."""
        return f"{self.endpoint.model} ({self.form}, {self.order})"

    def estimate(self, pairs: Sequence[ResponsePair]) -> CostEstimate:
        """What judging these pairs will take; no request is sent."""
        with self._answers() as answers:
            return self._estimate([job for pair in pairs for job in self._jobs(pair)], answers)

    def judge(self, pairs: Sequence[ResponsePair], progress: Progress | None = None) -> list[Verdict]:
        """Ask about every pair.

        Parameters
        ----------
        pairs : sequence of ResponsePair
        progress : Progress, optional
            Called after every answer, in requests.

        Returns
        -------
        list of Verdict

        Raises
        ------
        EndpointError
            If the estimated cost is above the budget; if the endpoint refuses the key, the account or the address; or
            after five requests in a row without an answer. Answers so far are in the cache.
        """
        by_pair = [self._jobs(pair) for pair in pairs]
        jobs = list({job.key: job for row in by_pair for job in row}.values())
        with self._answers() as answers:
            estimate = self._estimate(jobs, answers)
            if self.budget is not None and estimate.cost is not None and estimate.cost > self.budget:
                raise EndpointError(
                    explain(
                        "budget",
                        got=f"an estimated cost of {estimate.cost:.4g} for {estimate.num_requests} requests",
                        expected=f"at most {self.budget:.4g}",
                        hint="fewer prompts, order='random', a smaller max_tokens, or a larger budget",
                    )
                )
            done = estimate.num_cached
            missing = [job for job in jobs if answers.get(job.key) is None]

            def told(number: int) -> None:
                if progress is not None:
                    progress("judge", done + number, len(jobs), {})

            told(0)
            unanswered = self._ask(missing, answers, told)
            return [self._verdict(row, answers, unanswered) for row in by_pair]

    def _answers(self) -> AnswerCache:
        return self._memory if self.cache is None else AnswerCache(self.cache)

    def _jobs(self, pair: ResponsePair) -> list[_Job]:
        """The requests about a pair."""
        if self.order == "both":
            orders = [False, True]
        else:
            text = json.dumps([self.seed, pair.prompt, pair.response, pair.opponent_response])
            orders = [hashlib.sha256(text.encode()).digest()[0] % 2 == 1]
        form, jobs = FORMS[self.form], []
        for swapped in orders:
            told = messages(pair, swapped=swapped, instructions=self.instructions or form.instructions)
            body = self.endpoint.body(told, **form.options)
            jobs.append(_Job(key=fingerprint({"url": self.endpoint.url, "body": body}), body=body, swapped=swapped))
        return jobs

    def _estimate(self, jobs: Sequence[_Job], answers: AnswerCache) -> CostEstimate:
        every = {job.key: job for job in jobs}
        missing = [job for job in every.values() if answers.get(job.key) is None]
        characters = sum(len(message["content"]) for job in missing for message in job.body["messages"])
        input_tokens = math.ceil(characters / CHARACTERS_PER_TOKEN)
        output_tokens = sum(job.body["max_tokens"] for job in missing)
        return CostEstimate(
            num_requests=len(missing),
            num_cached=len(every) - len(missing),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost=self.endpoint.cost(input_tokens, output_tokens),
        )

    def _ask(self, jobs: Sequence[_Job], answers: AnswerCache, told: Callable[[int], object]) -> dict[str, NoAnswer]:
        """Fetch the answers to all requests; those that got none, by key."""
        unanswered: dict[str, NoAnswer] = {}
        counts: Counter[str] = Counter()
        with Endpoint(self.endpoint) as endpoint, ThreadPoolExecutor(self.endpoint.concurrency) as threads:
            streak = _Streak(endpoint)

            def fetch(job: _Job) -> dict[str, Any]:
                with streak:
                    answer = endpoint.complete(job.body)
                answers.put(job.key, answer)
                return answer

            try:
                under_way = {threads.submit(fetch, job): job for job in jobs}
                for number, future in enumerate(as_completed(under_way), start=1):
                    try:
                        counts += _tokens(future.result())
                    except NoAnswer as none:
                        unanswered[under_way[future].key] = none
                    told(number)
            except BaseException:  # an interruption too: nothing more is asked, and what is under way ends and is kept
                endpoint.stop()
                threads.shutdown(cancel_futures=True)
                raise
            finally:
                self.usage = Usage(
                    num_requests=endpoint.num_requests,
                    num_retries=endpoint.num_retries,
                    input_tokens=counts["input_tokens"],
                    output_tokens=counts["output_tokens"],
                    num_uncounted=counts["uncounted"],
                    cost=self.endpoint.cost(counts["input_tokens"], counts["output_tokens"]),
                )
        return unanswered

    def _verdict(self, jobs: Sequence[_Job], answers: AnswerCache, unanswered: Mapping[str, NoAnswer]) -> Verdict:
        """The mean over a pair's orders; the first fault where one has no verdict."""
        preferences = []
        for job in jobs:
            answer = answers.get(job.key)
            if answer is None:
                none = unanswered[job.key]
                return no_verdict(none.fault, none.detail)
            verdict = read_verdict(answer, FORMS[self.form], swapped=job.swapped)
            if verdict.fault is not None:
                return verdict
            preferences.append(verdict.preference)
        return Verdict(preference=sum(preferences) / len(preferences))


class _Streak:
    """Ends the asking after too many requests in a row without an answer; entered around each, from any thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._lock = endpoint, threading.Lock()
        self._length, self._answered = 0, False

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped) or not (error is None or isinstance(error, NoAnswer)):
            return
        with self._lock:
            # after a first answer a rejection is about its own request
            about_itself = error is None or (self._answered and error.fault == "rejected_request")
            self._answered = self._answered or error is None
            self._length = 0 if about_itself else self._length + 1
            too_long = self._length == GIVE_UP_AFTER
        if error is not None and too_long:
            self._endpoint.stop()
            config = self._endpoint.config
            raise EndpointError(
                explain(
                    f"{config.url}, model {config.model!r}",
                    got=f"{GIVE_UP_AFTER} requests in a row without an answer ({error.detail})",
                    expected="answers",
                    hint="again later: the answers so far are in the cache, where there is one",
                )
            ) from None


def _tokens(answer: Mapping[str, Any]) -> Counter[str]:
    """What the endpoint counted of an answer, or that it did not."""
    counted = {name: answer[name] for name in ("input_tokens", "output_tokens")}
    if all(isinstance(count, int) for count in counted.values()):
        return Counter(counted)
    return Counter(uncounted=1)
