"""Random requests on random machines: each must become, bit for bit, what it becomes alone.

`Proof` runs schedules and counts; test_exactness.py runs some, exactness.py as many as wanted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

from machines import Machine, fma_isas
from random_requests import RandomRequest, draw_requests, log_uniform
from response_bits import bits, difference, logprobs_of

import pyengine as pe
from pyengine.engine.calls.streaming import TokenEvent
from pyengine.engine.infer.inference import SessionInference
from pyengine.engine.infer.sampler import Sampler

# What a run that means anything must have come across.
EVENTS = (
    "schedules",
    "tokens",
    "scored_tokens",
    "preemptions",
    "matched_tokens",
    "copied_pages",
    "evicted_pages",
    "aborted",
    "mixed_schedules",
)
MIXTURES: tuple[dict[str, float], ...] = (
    {"policy": 1.0},
    {"policy": 1.0},
    {"policy": 1.0},
    {"policy": 1.4, "reference": -0.4},
)


class Interruptions:
    """A stream that ends some samples and keeps all events, or a cancellation, or neither."""

    def __init__(self, rng: Random, chosen: Sequence[RandomRequest]) -> None:
        self.events: dict[tuple[int, int], list[TokenEvent]] = {}
        self._cancel = threading.Event()
        self._ends: dict[tuple[int, int], int] = {}
        self._cancel_at = -1
        kind = rng.random()
        self.streams = kind < 0.15
        if self.streams:
            for i, request in enumerate(chosen):
                for k in range(request.params.n):
                    if rng.random() < 0.3:
                        self._ends[i, k] = rng.randrange(request.params.max_tokens)
        elif kind < 0.25:
            self._cancel_at = rng.randint(0, 300)

    def arguments(self) -> dict[str, Any]:
        """Of `Engine.generate`."""
        if self.streams:
            return {"stream": self._stream}
        if self._cancel_at >= 0:
            # Watched as a stream is, so that progress is called after each step.
            return {
                "cancel": self._cancel,
                "progress": self._progress,
                "stream": lambda event: True,
            }
        return {}

    def _stream(self, event: TokenEvent) -> bool:
        key = event.request, event.sample
        self.events.setdefault(key, []).append(event)
        return self._ends.get(key) != event.position

    def _progress(self, tokens: int, finished: int, samples: int) -> None:
        if tokens >= self._cancel_at:
            self._cancel.set()

    def problem(self, index: int, sample: int, response: pe.Response) -> str:
        """Empty, or what is wrong with the response's events or with how it ended."""
        if response.finish_reason == "abort" and not (
            self._cancel.is_set()
            or self._ends.get((index, sample), -1) == len(response.token_ids) - 1
        ):
            return "aborted but nobody asked for it"
        if not self.streams:
            return ""
        events = self.events.get((index, sample), [])
        if [e.position for e in events] != list(range(len(response.token_ids))):
            return f"{len(events)} events of {len(response.token_ids)} tokens"
        if [e.token_id for e in events] != response.token_ids:
            return "events of other tokens"
        if bits(e.logprob for e in events) != bits(response.logprobs or []):
            return "events of other log-probs"
        return ""


class Proof:
    """Schedules of requests from one pool, on an engine whose policy and reference differ.

    isas         instruction sets to choose from, the solo runs' last: those with FMA by default
    most_steps   machines of few rows a step are not chosen where they would need more, or large
                 models would take hours
    counts       how often each of EVENTS was met
    differences  what was found, in words; the proof holds while there is none
    """

    def __init__(
        self,
        engine: pe.Engine,
        seed: int = 0,
        pool: int = 200,
        most_requests: int = 64,
        isas: Sequence[str] | None = None,
        mixtures: Sequence[Mapping[str, float]] = MIXTURES,
        most_steps: int = 1_000_000,
        threads: Sequence[int] = (1, 2),
    ) -> None:
        self.engine = engine
        self.counts: Counter[str] = Counter()
        self.differences: list[str] = []
        self._rng = Random(seed)
        self._isas = list(isas or fma_isas() or ["baseline"])
        self._most_requests = most_requests
        self._mixtures = mixtures
        self._most_steps = most_steps
        self._threads = list(threads)
        spec, has_tokenizer = engine.spec, engine.tokenizer is not None
        self.pool = draw_requests(
            self._rng, pool, spec.vocab_size, spec.max_positions, has_tokenizer
        )
        self._solo: dict[tuple[int, int], pe.Group] = {}
        self._machine: Machine | None = None
        self._sampler: Sampler | None = None

    def missing(self) -> list[str]:
        """Events that have not been met."""
        return [event for event in EVENTS if self.counts[event] == 0]

    def alone(self, index: int, mixture: int = 0, isa: str | None = None) -> pe.Group:
        """Request `index` with nothing beside it and nothing before it."""
        request = self.pool[index]
        machine = Machine(isa or self._isas[-1], threads=1)
        inference = self.engine._inference
        assert isinstance(inference, SessionInference)
        sampler = Sampler(inference.sampler.models, machine.num_pages * machine.page_tokens)
        with machine.running(self.engine, sampler):
            [group] = self.engine.generate(
                [request.prompt_ids],
                request.params,
                [request.request_id],
                models=self._mixtures[mixture],
            )
        return group

    def run_schedule(self) -> None:
        rng = self._rng
        count = log_uniform(rng, 1, self._most_requests)
        indices = [rng.randrange(len(self.pool)) for _ in range(count)]
        mixture = rng.randrange(len(self._mixtures))
        # The first samples do not depend on how many there are.
        chosen = [
            request
            if rng.random() < 0.8
            else replace(request, params=replace(request.params, n=rng.randint(1, 4)))
            for request in (self.pool[i] for i in indices)
        ]
        interruptions = Interruptions(rng, chosen)
        longest = max(r.longest for r in chosen)
        rows = sum(len(r.prompt_ids) + r.params.n * r.params.max_tokens for r in chosen)
        models = self._mixtures[mixture]
        with self._somewhere(longest, rows, len(models)):
            groups = self.engine.generate(
                [r.prompt_ids for r in chosen],
                [r.params for r in chosen],
                [r.request_id for r in chosen],
                models=models,
                **interruptions.arguments(),
            )
        self.counts["schedules"] += 1
        self.counts["mixed_schedules"] += len(models) > 1
        for i, (index, group) in enumerate(zip(indices, groups, strict=True)):
            self._compare(i, index, mixture, group, interruptions)
        self._score(groups, models)

    def _compare(
        self, i: int, index: int, mixture: int, group: pe.Group, interruptions: Interruptions
    ) -> None:
        key = index, self._mixtures.index(self._mixtures[mixture])
        if key not in self._solo:
            self._solo[key] = self.alone(*key)
        for k, response in enumerate(group.responses):
            self.counts["tokens"] += len(response.token_ids)
            self.counts["aborted"] += response.finish_reason == "abort"
            if problem := interruptions.problem(i, k, response):
                self._report(f"request {index}, sample {k}: {problem}")
            if k >= len(self._solo[key].responses):
                continue
            if found := difference(response, self._solo[key].responses[k]):
                self._report(f"request {index}, sample {k}, {found}")

    def _score(self, groups: Sequence[pe.Group], models: Mapping[str, float]) -> None:
        """The responses, in another order, on another machine: the sampler's log-probs."""
        rng = self._rng
        shuffled = [replace(g, responses=rng.sample(g.responses, len(g.responses))) for g in groups]
        rng.shuffle(shuffled)
        sizes = [[len(g.prompt_ids) + len(r.token_ids) for r in g.responses] for g in shuffled]
        longest, rows = max(map(max, sizes)), sum(map(sum, sizes))
        for name in models:
            with self._somewhere(longest, rows, 1):
                scores = self.engine.score(shuffled, model=name)
            for group, of_group in zip(shuffled, scores, strict=True):
                for response, score in zip(group.responses, of_group, strict=True):
                    self.counts["scored_tokens"] += len(response.token_ids)
                    sampled = logprobs_of(response, name)
                    if bits(score.token_logprobs.tolist()) != bits(sampled):
                        self._report(
                            f"{name} scores {score.token_logprobs.tolist()} but sampled {sampled} "
                            f"after {group.prompt_ids}"
                        )

    @contextmanager
    def _somewhere(self, longest: int, rows: int, models: int) -> Iterator[None]:
        """On a random machine, or the last one with what its pages hold; counts what happens."""
        if not self._fits(longest, rows, models) or self._rng.random() < 0.7:
            self._sampler = None  # its memory first
            self._machine = self._draw_machine(longest, rows, models)
            inference = self.engine._inference
            assert isinstance(inference, SessionInference)
            self._sampler = self._machine.sampler(inference.sampler)
        assert self._machine is not None
        assert self._sampler is not None
        session, before = self._sampler._session, Counter[str]()
        if session is not None:
            before.update(session.statistics())
        with self._machine.running(self.engine, self._sampler):
            yield
        if self._sampler._session is None:
            return  # scores of the reference are the learner's
        after = Counter(self._sampler._session.statistics())
        if self._sampler._session is session:
            after.subtract(before)
        for event in ("preemptions", "matched_tokens", "copied_pages", "evicted_pages"):
            self.counts[event] += after[event]

    def _fits(self, longest: int, rows: int, models: int) -> bool:
        machine = self._machine
        if machine is None or machine.max_rows < rows // self._most_steps:
            return False
        return -(-longest // machine.page_tokens) * models <= machine.num_pages

    def _draw_machine(self, longest: int, rows: int, models: int) -> Machine:
        rng = self._rng
        page_tokens = rng.choice((16, 32, 64))
        needed = -(-longest // page_tokens)
        if rng.random() < 0.6:  # the longest request fits, and little beside it
            pages = round(needed * rng.uniform(1.0, 3.0))
        else:
            pages = needed + log_uniform(rng, 1024, 8192) // page_tokens
        return Machine(
            isa=self._isas[-1] if rng.random() < 0.8 else rng.choice(self._isas),
            threads=rng.choice(self._threads),
            page_tokens=page_tokens,
            num_pages=pages * models,
            max_rows=log_uniform(rng, min(max(1, rows // self._most_steps), 512), 512),
            max_sequences=rng.choice((512, 512, log_uniform(rng, 1, 64))),
            share_prefixes=rng.random() < 0.7,
        )

    def _report(self, what: str) -> None:
        self.differences.append(f"schedule {self.counts['schedules']} on {self._machine}: {what}")
