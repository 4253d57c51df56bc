"""Beam search over steps of a response, by what a source says of its beginnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.engine.calls.requests import as_written
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, Rule, check_fields, checked, or_none
from pyengine.samplers.judging import best_first, rewards_of
from pyengine.samplers.prompt_text import encoded
from pyengine.samplers.sampler import Generates, derived_ids

_TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class _Beam:
    """A response so far, what the source said of it, and whether it has ended."""

    response: Response
    value: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class BeamSteps:
    """The beams of a search over steps: each is continued several times, the best by a source stay.

    beams        beginnings that are kept after each step; a group holds them at the end, best first
    expand       continuations of each beam; the first step draws beams * expand
    step_tokens  longest step, in tokens
    step_end     text that ends a step, such as a blank line; None: every step has step_tokens
    A source judges the beginnings as if they were responses. Ended ones keep their place against
    those that go on; what the source abstains from or fails on is dropped; a prompt of which
    nothing is left ends with no response. Equal continuations count once. The groups' columns:
    "values" of the responses, "unjudged" beginnings. `n` of the sampling parameters must be 1 and
    what counts over the whole response (stop texts, min_tokens, presence and frequency penalties)
    unset.
    Raises ConfigError for those, or without a source.
    Source: Xie et al., arXiv:2305.00633, section 3; Snell et al., arXiv:2408.03314, section 5.1.
    """

    name: ClassVar[str] = "beam_steps"
    needs_source: ClassVar[bool] = True
    adds_columns: ClassVar[tuple[str, ...]] = ("values", "unjudged")
    beams: int = checked(2, COUNT)
    expand: int = checked(2, COUNT)
    step_tokens: int = checked(32, COUNT)
    step_end: str | None = checked(None, or_none(_TEXT))

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most. Raises ConfigError."""
        for name, unset in (
            ("n", 1),
            ("stop", ()),
            ("min_tokens", 0),
            ("presence_penalty", 0),
            ("frequency_penalty", 0),
        ):
            value = getattr(params, name)
            if (tuple(value) if name == "stop" else value) != unset:
                raise ConfigError(
                    f"[beam_steps] {name} of the sampling parameters must be {unset!r} since "
                    f"responses are sampled step by step but is {value!r}"
                )
        return self.beams

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate and one judge call a step, over all beams of all prompts."""
        self.size(params)
        plain = encoded(engine, prompts)
        groups = [
            Group(ids, [], as_written(prompt)) for ids, prompt in zip(plain, prompts, strict=True)
        ]
        search = _Search(self, engine, params, judge, groups, request_ids)
        while search.step():
            pass
        for group, beams, unjudged in zip(groups, search.beams, search.unjudged, strict=True):
            group.responses = [beam.response for beam in beams]
            group.columns |= {"values": [beam.value for beam in beams], "unjudged": unjudged}
        return groups


class _Search:
    """The beams of all prompts, a step at a time.

    beams     [prompt], best first
    unjudged  [prompt] beginnings that were dropped for want of a value
    """

    def __init__(
        self,
        sampler: BeamSteps,
        engine: Generates,
        params: SamplingParams,
        judge: Source | None,
        groups: list[Group],
        request_ids: Sequence[int],
    ) -> None:
        self.sampler, self.engine, self.params = sampler, engine, params
        self.judge, self.groups, self.request_ids = judge, groups, request_ids
        self.beams = [[_Beam(Response([], [], [], kept_mass=[]))] for _ in groups]
        self.unjudged = [0] * len(groups)
        self.steps = 0

    def step(self) -> bool:
        """Whether there was a beam to continue."""
        going = [
            (i, b)
            for i, beams in enumerate(self.beams)
            for b, beam in enumerate(beams)
            if not beam.done
        ]
        if not going:
            return False
        grown = self._grown(going)
        prompts = sorted(grown)
        judged = rewards_of(
            self.sampler.name,
            self.judge,
            [
                dataclasses.replace(self.groups[i], responses=[beam.response for beam in grown[i]])
                for i in prompts
            ],
        )
        for i, values in zip(prompts, judged, strict=True):
            self.unjudged[i] += values.count(None)
            every = [beam for beam in self.beams[i] if beam.done] + [
                dataclasses.replace(beam, value=value)
                for beam, value in zip(grown[i], values, strict=True)
                if value is not None
            ]
            order = best_first([beam.value for beam in every])
            self.beams[i] = [every[k] for k in order[: self.sampler.beams]]
        self.steps += 1
        return True

    def _grown(self, going: list[tuple[int, int]]) -> dict[int, list[_Beam]]:
        """prompt -> the continuations of its beams, each once."""
        n = self.sampler.expand * (self.sampler.beams if self.steps == 0 else 1)
        so_far = [self.beams[i][b].response for i, b in going]
        drawn = self.engine.generate(
            [
                self.groups[i].prompt_ids + r.token_ids
                for (i, _), r in zip(going, so_far, strict=True)
            ],
            [self._params(n, len(r.token_ids)) for r in so_far],
            request_ids=[
                each
                for i, b in going
                for each in derived_ids([self.request_ids[i]], self.steps * self.sampler.beams + b)
            ],
        )
        grown: dict[int, list[_Beam]] = {}
        for (i, _), before, group in zip(going, so_far, drawn, strict=True):
            beams = grown.setdefault(i, [])
            seen = {tuple(beam.response.token_ids) for beam in beams}
            for added in group.responses:
                response = self._continued(before, added)
                if tuple(response.token_ids) not in seen:
                    seen.add(tuple(response.token_ids))
                    beams.append(_Beam(response, done=self._has_ended(response, added)))
        return grown

    def _params(self, n: int, written: int) -> Any:
        end = self.sampler.step_end
        left = self.params.max_tokens - written
        return dataclasses.replace(
            self.params,
            n=n,
            max_tokens=min(self.sampler.step_tokens, left),
            stop=() if end is None else (end,),
        )

    def _continued(self, before: Response, added: Response) -> Response:
        """Both as one; all its numbers are those of the whole, since each is of a token."""
        ids = before.token_ids + added.token_ids
        both = {
            name: None
            if getattr(added, name) is None
            else (getattr(before, name) or []) + getattr(added, name)
            for name in ("logprobs", "sampling_logprobs", "kept_mass", "entropy", "top_logprobs")
        }
        tokenizer = self.engine.tokenizer
        text = None if tokenizer is None else tokenizer.decode_completion(ids)
        return dataclasses.replace(added, token_ids=ids, text=text, **both)

    def _has_ended(self, response: Response, added: Response) -> bool:
        if added.finish_reason == "length":
            return len(response.token_ids) >= self.params.max_tokens
        end = self.sampler.step_end
        # The end token stops a step as its end text does; only the latter is in the tokens' text.
        return end is None or end not in self.engine.tokenizer.decode_completion(added.token_ids)
