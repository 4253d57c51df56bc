"""Attempts that are criticised and revised, round after round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.data.prompt_templates import check_places, filled
from pyengine.engine.calls.requests import encode
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, Rule, check_fields, checked
from pyengine.samplers.joining import reprompted
from pyengine.samplers.model_names import ANY_MODEL
from pyengine.samplers.prompt_text import check_text
from pyengine.samplers.sampler import Generates, derived_ids

_TEXT = Rule("a text", lambda value: isinstance(value, str))
CRITIQUE = (
    "{prompt}\n\nAn answer to this:\n{response}\n\nName what is wrong, missing or unclear in the "
    "answer, in a few sentences.\n"
)
REVISE = (
    "{prompt}\n\nAn answer to this:\n{response}\n\nCriticism of it:\n{critique}\n\nWrite a better "
    "answer that takes the criticism into account. Give the answer only.\n"
)


@dataclass
class _Chain:
    """Sample k of prompt i: its latest attempt, and what was said of it."""

    i: int
    k: int
    attempt: Response
    critique: str = ""


@dataclass
class _Kept:
    """What a prompt's group will hold."""

    responses: list[Response]
    rounds: list[int] = field(default_factory=list)
    critiques: list[str | None] = field(default_factory=list)
    broken: int = 0


@dataclass(frozen=True)
class RefineChain:
    """n samples, each criticised and revised again and again; every attempt is kept.

    rounds           revisions of each sample, each of the one before
    critique         prompt for the criticism, with places {prompt}, {response}; of a chat, {prompt}
                     is the last message's text, and the filled template takes its place. Empty:
                     revisions are written without any
    revise           prompt for the revision, with places {prompt}, {response}, {critique}
    critic           who criticises: "policy", "reference" or a snapshot's name
    critique_tokens  longest criticism
    Groups hold the n samples, then the revisions of each round. Revisions have origin "revision"
    and no `logprobs`, which would be those of another prompt than the group's. Its columns:
    "attempts", the round of each response, 0 of the samples; "critiques", what each was written
    after, None for samples; "chains_broken", those that ended since their next prompt was too long.
    Templates that begin with {prompt} find its pages computed. Raises ConfigError for a template
    without its places, RequestError for a prompt of token ids.
    Source: Scheurer et al., arXiv:2303.16755, section 2 (ILF); Choi et al., arXiv:2406.01660,
    section 4 (SRPO's revisions at inference).
    """

    name: ClassVar[str] = "refine_chain"
    needs_source: ClassVar[bool] = False
    has_logprobs: ClassVar[bool] = False
    adds_columns: ClassVar[tuple[str, ...]] = ("attempts", "critiques", "chains_broken")
    rounds: int = checked(1, COUNT)
    critique: str = checked(CRITIQUE, _TEXT)
    revise: str = checked(REVISE, _TEXT)
    critic: str = checked("policy", ANY_MODEL)
    critique_tokens: int = checked(128, COUNT)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.critique:
            self._check("critique", {"response"}, {"prompt", "response"})
        with_critique = {"critique"} if self.critique else set()
        self._check("revise", {"response"} | with_critique, {"prompt", "response"} | with_critique)

    def _check(self, template: str, needed: set[str], known: set[str]) -> None:
        check_places(self.name, template, getattr(self, template), needed, known)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group, at most."""
        return params.n * (self.rounds + 1)

    def origins(self, params: SamplingParams) -> list[str | None]:
        """Of a group's responses."""
        return [None] * params.n + ["revision"] * (params.n * self.rounds)

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """A generate call for the samples, and two a round, over all chains of all prompts."""
        check_text(self.name, prompts)
        groups: list[Group] = engine.generate(prompts, params, request_ids=request_ids)
        work = _Work(self, engine, prompts, params, request_ids)
        kept = [_Kept(group.responses, [0] * params.n, [None] * params.n) for group in groups]
        chains = [
            _Chain(i, k, response)
            for i, g in enumerate(groups)
            for k, response in enumerate(g.responses)
        ]
        for turn in range(1, self.rounds + 1):
            chains = work.criticise(chains, turn) if self.critique else chains
            chains = work.revise(chains, turn)
            for chain in chains:
                of = kept[chain.i]
                of.responses = [*of.responses, chain.attempt]
                of.rounds.append(turn)
                of.critiques.append(chain.critique if self.critique else None)
        for i in work.broken:
            kept[i].broken += 1
        for group, of in zip(groups, kept, strict=True):
            group.responses = of.responses
            group.columns |= {
                "attempts": of.rounds,
                "critiques": of.critiques,
                "chains_broken": of.broken,
            }
        return groups


class _Work:
    """The calls of one run of chains.

    broken  the prompt of each chain that ended early
    """

    def __init__(
        self,
        sampler: RefineChain,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
    ) -> None:
        self.sampler, self.engine, self.prompts = sampler, engine, prompts
        self.params, self.request_ids = params, request_ids
        self.broken: list[int] = []

    def criticise(self, chains: list[_Chain], turn: int) -> list[_Chain]:
        """The chains whose critic could be asked, with what it said."""
        sampler = self.sampler
        params = dataclasses.replace(
            self.params, n=1, max_tokens=sampler.critique_tokens, min_tokens=0, stop=()
        )
        models = None if sampler.critic == "policy" else {sampler.critic: 1.0}
        going, said = self._ask(chains, sampler.critique, params, models, 2 * turn - 2)
        return [
            dataclasses.replace(chain, critique=(response.text or "").strip())
            for chain, response in zip(going, said, strict=True)
        ]

    def revise(self, chains: list[_Chain], turn: int) -> list[_Chain]:
        """The chains that could be gone on with, each with its new attempt."""
        params = dataclasses.replace(self.params, n=1)
        going, written = self._ask(chains, self.sampler.revise, params, None, 2 * turn - 1)
        return [
            dataclasses.replace(chain, attempt=reprompted(response, "revision"))
            for chain, response in zip(going, written, strict=True)
        ]

    def _ask(
        self,
        chains: list[_Chain],
        template: str,
        params: SamplingParams,
        models: dict[str, float] | None,
        call: int,
    ) -> tuple[list[_Chain], list[Response]]:
        """Call number `call`, over all chains whose filled template leaves room for an answer."""
        going, asked, ids = [], [], []
        for chain in chains:
            prompt = filled(
                template,
                self.prompts[chain.i],
                response=(chain.attempt.text or "").strip(),
                critique=chain.critique,
            )
            tokens = encode(chain.i, prompt, self.engine.tokenizer)
            if len(tokens) + params.max_tokens > self.engine.max_positions:
                self.broken.append(chain.i)
                continue
            going.append(chain)
            asked.append(tokens)
            draw = 1 + call * self.params.n + chain.k
            ids += derived_ids([self.request_ids[chain.i]], draw)
        if not going:
            return [], []
        more = {} if models is None else {"models": models}
        groups = self.engine.generate(asked, params, request_ids=ids, **more)
        return going, [group.responses[0] for group in groups]
