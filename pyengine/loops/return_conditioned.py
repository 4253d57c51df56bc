"""Return-conditioned RL: the policy learns what good and bad responses are like, and is asked for
good ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.loop import Report
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Preferences
from pyengine.samplers.prompt_text import check_text, encoded, followed

if TYPE_CHECKING:
    from pyengine.preferences.sources.source import Source


class ReturnConditioned(Prompted):
    """A round samples with a text after each prompt that asks for good responses, and learns every
    response under the text that says what it turned out to be.

    objective   of responses: objectives.NLL()
    good, bad   texts after a prompt, in a chat at the end of its last message; not the same
    above       a response is good where its reward is greater; the others that have one are bad
    epochs      over a round's responses
    batch_size  responses an optimizer step; None: all of them
    others      see Prompted; evaluations ask for good responses, too

    Prompts are texts or chat messages. Source: Havrilla et al., arXiv:2403.04642, section 3.3.
    """

    name: ClassVar[str] = "return_conditioned"

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        objective: Any,
        sampling: Any,
        *,
        good: str = " [GOOD]",
        bad: str = " [BAD]",
        above: float = 0.0,
        epochs: int = 1,
        batch_size: int | None = None,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.good, self.bad, self.above = good, bad, above
        self.epochs, self.batch_size = epochs, batch_size
        for name in ("good", "bad"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ConfigError(
                    f"[ReturnConditioned] {name} must be a text but is {getattr(self, name)!r}"
                )
        if good == bad:
            raise ConfigError(f"[ReturnConditioned] good and bad must differ but are {good!r}")
        if isinstance(above, bool) or not math.isfinite(above):
            raise ConfigError(f"[ReturnConditioned] above must be finite but is {above!r}")
        held_out = list(options.get("eval_prompts") or ())
        check_text("ReturnConditioned", [*prompts, *held_out])
        options["eval_prompts"] = [followed(prompt, good) for prompt in held_out]
        asked = [followed(prompt, good) for prompt in prompts]
        super().__init__(engine, asked, source, objective, sampling, **options)

    def _fixed(self) -> dict[str, Any]:
        settings = ("good", "bad", "above", "epochs", "batch_size")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    def _made_up(self, index: int) -> Group:
        group = super()._made_up(index)
        for response in group.responses:
            response.logprobs = None
        return group

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        prompts = [self._with_bad(group.prompt) for group in groups]
        found: list[Group] = []
        rewards: list[list[float | None]] = []
        counts = {"good": 0, "bad": 0}
        for group, prompt, ids, row in zip(
            groups, prompts, encoded(self.engine, prompts), feedback.rewards, strict=True
        ):
            judged = [(r, x) for r, x in zip(group.responses, row, strict=True) if x is not None]
            for kind, shown, prompt_ids in (
                ("good", group.prompt, group.prompt_ids),
                ("bad", prompt, ids),
            ):
                mine = [(r, x) for r, x in judged if (x > self.above) == (kind == "good")]
                counts[kind] += len(mine)
                if mine:
                    responses = [response for response, _ in mine]
                    if kind == "bad":  # their log-probs are of the other prompt
                        responses = [dataclasses.replace(r, logprobs=None) for r in responses]
                    found.append(Group(prompt_ids, responses, shown, group.columns))
                    rewards.append([reward for _, reward in mine])
        report = {f"return_conditioned/{kind}": count for kind, count in counts.items()}
        return Preferences(found, (), Feedback.from_rewards(rewards)), report

    def rehearsed_batch(self, groups: Sequence[Group], feedback: Feedback) -> Preferences:
        """See Prompted: made-up prompts have no text."""
        return Preferences(groups, (), Feedback.from_rewards(feedback.rewards))

    def _with_bad(self, prompt: Any) -> Any:
        """The prompt with the other text in the place of the one that asks for good responses."""
        if isinstance(prompt, str):
            return prompt.removesuffix(self.good) + self.bad
        last = {**prompt[-1], "content": prompt[-1]["content"].removesuffix(self.good) + self.bad}
        return [*prompt[:-1], last]
