"""A dialogue with a simulated user, several responses to one of its turns, each gone on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.engine.calls.requests import encode
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import RequestError
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_uniforms
from pyengine.preferences.sources.rewards_to_go import REST
from pyengine.preferences.sources.source import Source
from pyengine.rules import COUNT, Rule, check_fields, checked
from pyengine.samplers.model_names import ANY_MODEL
from pyengine.samplers.sampler import Generates, derived_ids

USER = (
    "This is a conversation with an assistant.\n\n{dialogue}\n\nWrite what the user says next, in "
    "one short sentence. Give the sentence only.\n"
)
_TEMPLATE = Rule(
    "a text with {dialogue} in it", lambda value: isinstance(value, str) and "{dialogue}" in value
)


@dataclass
class _Talk:
    """A dialogue so far: prompt i's, or what follows its response k.

    said   messages, the user's last where the assistant is to speak
    turns  of the assistant that are there
    rest   of what follows a response, each turn of the assistant and what it answers
    cut    whether it ended early, since it grew too long for the model
    """

    i: int
    k: int
    said: list[dict[str, Any]]
    turns: int = 0
    rest: list[Group] = field(default_factory=list)
    cut: bool = False


@dataclass(frozen=True)
class Dialogue:
    """n responses to one turn of the policy's own dialogue with a simulated user, each gone on with
    to the dialogue's end.

    turns        H: of the assistant in a dialogue; the prompt is what comes before its first
    user         who plays the user: "policy", "reference" or a snapshot's name
    instruction  what it is asked for the user's next line, with {dialogue} for what was said
    user_tokens  longest line of the user

    The turn is drawn by lot for each prompt, each of 1 ... H alike. A group shows the dialogue up
    to it as its prompt, and nothing is learned of what came before or after. Its columns: "turn",
    its number; "rest", of each response the later turns of the assistant, a Group of one response
    each, which the source `rewards_to_go` judges; "cut", how many dialogues ended early because the
    next prompt left no room in the model. Where that happens before the turn that was drawn, the
    turn is the last that has room.
    Raises RequestError for a prompt that is no chat which ends with the user.
    Source: Gao et al., arXiv:2410.04612, algorithm 1.
    """

    name: ClassVar[str] = "dialogue"
    needs_source: ClassVar[bool] = False
    adds_columns: ClassVar[tuple[str, ...]] = ("turn", REST, "cut")
    turns: int = checked(3, COUNT)
    user: str = checked("reference", ANY_MODEL)
    instruction: str = checked(USER, _TEMPLATE)
    user_tokens: int = checked(32, COUNT)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group."""
        return params.n

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
    ) -> list[Group]:
        """One generate call for the responses, and two for every other turn, over all dialogues."""
        _check_chats(prompts)
        speakers = _Speakers(self, engine, params, request_ids)
        talks = [_Talk(i, 0, list(prompt)) for i, prompt in enumerate(prompts)]
        drawn = [self._turn(params.seed, request_id) for request_id in request_ids]
        for _ in range(self.turns - 1):
            speakers.go_on([t for t in talks if not t.cut and t.turns + 1 < drawn[t.i]])
        groups = engine.generate([t.said for t in talks], params, request_ids=request_ids)
        branches = [
            [
                _Talk(t.i, k, _with(t.said, response.text), t.turns + 1, cut=t.cut)
                for k, response in enumerate(group.responses)
            ]
            for t, group in zip(talks, groups, strict=True)
        ]
        every = [branch for row in branches for branch in row]
        for _ in range(self.turns - 1):
            speakers.follow([b for b in every if not b.cut and b.turns < self.turns])
        for talk, group, row in zip(talks, groups, branches, strict=True):
            group.columns |= {
                "turn": talk.turns + 1,
                REST: [branch.rest for branch in row],
                "cut": sum(branch.cut for branch in row),
            }
        return groups

    def _turn(self, seed: int, request_id: int) -> int:
        """1 ... H."""
        return 1 + int(keyed_uniforms(self.name, seed, request_id)[0] * self.turns)


class _Speakers:
    """The calls of one run of dialogues: the assistant's, who is the policy, and the user's."""

    def __init__(
        self,
        sampler: Dialogue,
        engine: Generates,
        params: SamplingParams,
        request_ids: Sequence[int],
    ) -> None:
        self.sampler, self.engine, self.request_ids = sampler, engine, request_ids
        self.params = dataclasses.replace(params, n=1)
        self.of_user = dataclasses.replace(
            params, n=1, max_tokens=sampler.user_tokens, min_tokens=0, stop=()
        )
        self.n = params.n

    def go_on(self, talks: list[_Talk]) -> None:
        """A turn of the assistant and the user's answer to it. Where the next turn of the assistant
        would find no room, both are taken back."""
        before = [(talk.said, talk.turns) for talk in talks]
        self._user(self._assistant(talks))
        for talk, (said, turns) in zip(talks, before, strict=True):
            if talk.cut or not self._has_room(talk, talk.said, self.params):
                talk.said, talk.turns, talk.cut = said, turns, True

    def follow(self, talks: list[_Talk]) -> None:
        """The user's answer to what the assistant has said, and the assistant's next turn."""
        self._assistant(self._user(talks))

    def _assistant(self, talks: list[_Talk]) -> list[_Talk]:
        """Those in which the assistant had room to speak."""
        going, groups = self._ask(talks, [t.said for t in talks], self.params, None, 0)
        for talk, group in zip(going, groups, strict=True):
            talk.rest.append(group)
            talk.said = _with(talk.said, group.responses[0].text)
            talk.turns += 1
        return going

    def _user(self, talks: list[_Talk]) -> list[_Talk]:
        """Those in which the user had room to speak."""
        asked = [
            [{"role": "user", "content": self.sampler.instruction.replace("{dialogue}", text)}]
            for text in (_script(t.said) for t in talks)
        ]
        user = self.sampler.user
        models = None if user == "policy" else {user: 1.0}
        going, groups = self._ask(talks, asked, self.of_user, models, 1)
        for talk, group in zip(going, groups, strict=True):
            line = (group.responses[0].text or "").strip()
            talk.said = [*talk.said, {"role": "user", "content": line}]
        return going

    def _ask(
        self,
        talks: list[_Talk],
        prompts: list[list[dict[str, Any]]],
        params: SamplingParams,
        models: dict[str, float] | None,
        speaker: int,
    ) -> tuple[list[_Talk], list[Group]]:
        """One call, over all talks whose prompt leaves room for an answer; the others are cut."""
        going, asked, ids = [], [], []
        for talk, prompt in zip(talks, prompts, strict=True):
            if not self._has_room(talk, prompt, params):
                talk.cut = True
                continue
            going.append(talk)
            asked.append(prompt)
            # Draw 0 is that of the responses; a turn's come after those of the turns before.
            draw = 1 + ((talk.turns + 1) * self.n + talk.k) * 2 + speaker
            ids += derived_ids([self.request_ids[talk.i]], draw)
        if not going:
            return [], []
        more = {} if models is None else {"models": models}
        return going, self.engine.generate(asked, params, request_ids=ids, **more)

    def _has_room(self, talk: _Talk, prompt: list[dict[str, Any]], params: SamplingParams) -> bool:
        tokens = encode(talk.i, prompt, self.engine.tokenizer)
        return len(tokens) + params.max_tokens <= self.engine.max_positions


def _with(said: list[dict[str, Any]], text: str | None) -> list[dict[str, Any]]:
    return [*said, {"role": "assistant", "content": (text or "").strip()}]


def _script(said: list[dict[str, Any]]) -> str:
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in said)


def _check_chats(prompts: Sequence[Any]) -> None:
    for i, prompt in enumerate(prompts):
        is_chat = isinstance(prompt, (list, tuple)) and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) for m in prompt
        )
        if not is_chat or not prompt or prompt[-1].get("role") != "user":
            raise RequestError(
                f"[dialogue] prompts[{i}] must be chat messages of text that end with the user's "
                f"but is {prompt!r:.80}"
            )
