"""A model that is asked whether a response is good, and how likely it is to say yes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pyengine.errors import ConfigError
from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.questions import TEXT, Asker, check_template
from pyengine.preferences.sources.label_answers import ask_of_each
from pyengine.preferences.sources.source import Gives
from pyengine.rules import COUNT, FRACTION, POSITIVE, check_fields, checked, or_none

TEMPLATE = (
    "Read a prompt and a response to it.\n\n"
    "[Prompt]\n{prompt}\n\n"
    "[Response]\n{response}\n\n"
    "Is it a good response?"
)


@dataclass(frozen=True)
class YesNo:
    """Rewards a response by how likely a model says yes to a question about it, against no.

    The reward is P(yes) among the two, in [0, 1]. What cannot be asked has no reward.

    model        what is asked; it needs a tokenizer
    template     the question, with {prompt} and {response}
    yes, no      the answers; of one of several tokens the log-probs are summed
    temperature  of the two among themselves; > 0
    min_mass     an answer whose labels together are less likely than this is none; in [0, 1]
    max_tokens   of a question with its answer; None: what the model takes
    Source: P(True), Kadavath et al., arXiv:2207.05221, section 4.
    """

    name: ClassVar[str] = "yes_no"
    gives: ClassVar[Gives] = Gives()
    model: AsksModel | str = bound("model", "policy")
    template: str = checked(TEMPLATE, TEXT)
    yes: str = checked("Yes", TEXT)
    no: str = checked("No", TEXT)
    temperature: float = checked(1.0, POSITIVE)
    min_mass: float = checked(0.0, FRACTION)
    max_tokens: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.yes == self.no:
            raise ConfigError(f"[{self.name}] yes and no must differ but are {self.yes!r}")
        check_template(self.name, self.template, ("prompt", "response"), ())

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """P(yes) of each response. Raises RequestError where the model has no tokenizer."""
        check_bound(self)
        asker = Asker(self.name, cast(AsksModel, self.model), self.template, self.max_tokens)
        labels = (self.yes, self.no)
        found = ask_of_each(asker, groups, labels, self.temperature, self.min_mass)
        rewards = [[None if p is None else p[0] for p in row] for row in found.probabilities]
        return Feedback(
            rewards,
            found.status,
            found.errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            counts_by_name=found.counts,
        )
