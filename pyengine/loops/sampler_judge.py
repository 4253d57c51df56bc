"""A loop's source as its sampler asks it, in the middle of sampling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyengine.errors import RequestError
from pyengine.loops.evaluate import attach_columns
from pyengine.loops.steps import Verdict
from pyengine.preferences.sources.source import Gives, Source, gives

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group


class SkippedError(Exception):
    """The judge failed while a sampler asked it, and its policy is to skip the round."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class SamplerJudge:
    """The source with the loop's policy and memory, which gives the prompts' columns back.

    source   what is asked
    ask      groups -> the verdict, or the one on file, so that a resumed run samples alike
    prompts  of the round, and further fields of each
    Raises RequestError for groups of a prompt that the round has twice with different fields.
    """

    def __init__(
        self,
        source: Source,
        ask: Callable[[Sequence[Group]], Verdict],
        prompts: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        self.source, self.ask = source, ask
        self.prompts, self.columns = list(prompts), columns
        self._places: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            self._places.setdefault(_key(prompt), []).append(i)

    @property
    def gives(self) -> Gives:
        """What the source gives."""
        return gives(self.source)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The source's feedback. A prompt that is none of the round's keeps its columns."""
        if self.columns:
            for group, place in zip(groups, self._found(groups), strict=True):
                if place is not None:
                    attach_columns([group], self.columns, [place])
        verdict = self.ask(groups)
        if verdict.feedback is None:
            raise SkippedError(verdict)
        return verdict.feedback

    def _found(self, groups: Sequence[Group]) -> list[int | None]:
        """The place of each group's prompt among the round's; None for another prompt."""
        keys = [_key(g.prompt_ids if g.prompt is None else g.prompt) for g in groups]
        if keys == [_key(prompt) for prompt in self.prompts]:  # as most samplers ask
            return list(range(len(keys)))
        return [self._place(key) for key in keys]

    def _place(self, key: str) -> int | None:
        places = self._places.get(key, [])
        fields = [[values[p] for values in self.columns.values()] for p in places]
        if any(each != fields[0] for each in fields):
            raise RequestError(
                f"[sampler] a round's prompts must differ where their columns do but "
                f"{key:.80} is there {len(places)} times with different ones"
            )
        return places[0] if places else None


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)
