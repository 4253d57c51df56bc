"""Rewards that make refusing better than being wrong, by what the samples say is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Gives
from pyengine.rules import FINITE, FRACTION, Rule, check_fields, checked

_PHRASES = Rule(
    "a list of texts that are not empty",
    lambda v: isinstance(v, (list, tuple)) and bool(v) and all(isinstance(p, str) and p for p in v),
)


@dataclass(frozen=True)
class Knowledge:
    """A verifier's verdicts with refusals told apart: right, then refused, then wrong.

    verifier  a source that rewards right answers more than `right_above`
    refusals  a response with one of these texts in it, whatever the case, is a refusal and is not
              put to the verifier's verdict
    known     a prompt is known where at least this share of its judged answers is right
    right, refused, wrong  rewards, falling
    A right answer to a prompt that is not known is a lucky guess: it abstains, so that nothing is
    learned from it. Labels: right answers of known prompts, and refusals of others, are desirable.
    Counts: "known", "unknown", "refused", "lucky", "wrong", "right", and the verifier's own.
    Source: Xu et al., arXiv:2403.18349, section 3 (known: correct, refused, wrong in this order;
    unknown: refused before wrong).
    """

    name: ClassVar[str] = "knowledge"
    gives: ClassVar[Gives] = Gives(labels=True)
    verifier: Any = bound("source")
    refusals: Sequence[str] = checked(("I don't know", "I do not know", "I'm not sure"), _PHRASES)
    known: float = checked(0.5, FRACTION)
    right_above: float = checked(0.5, FINITE)
    right: float = checked(1.0, FINITE)
    refused: float = checked(0.0, FINITE)
    wrong: float = checked(-1.0, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.right > self.refused > self.wrong:
            raise ConfigError(
                f"[{self.name}] right, refused, wrong must fall but are {self.right}, "
                f"{self.refused}, {self.wrong}"
            )

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The verifier is asked once, about all responses."""
        found: Feedback = self.verifier(groups)
        counts: Counter[str] = Counter({"known": 0, "unknown": 0, "refused": 0, "lucky": 0})
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        labels: list[list[bool]] = []
        for group, verdicts, states in zip(groups, found.rewards, found.status, strict=True):
            refused = [self._refuses(r.text) for r in group.responses]
            rights = [
                None if refuses or verdict is None else verdict > self.right_above
                for refuses, verdict in zip(refused, verdicts, strict=True)
            ]
            known = self._is_known(rights)
            counts["known" if known else "unknown"] += 1
            row = [
                self._reward(refuses, is_right, known, counts)
                for refuses, is_right in zip(refused, rights, strict=True)
            ]
            rewards.append(row)
            status.append(
                ["value" if r is not None else "error" if s == "error" else "abstain"
                 for r, s in zip(row, states, strict=True)]
            )  # fmt: skip
            labels.append(
                [r == self.right or (refuses and not known)
                 for r, refuses in zip(row, refused, strict=True)]
            )  # fmt: skip
        return replace(
            found,
            rewards=rewards,
            status=status,
            labels=labels,
            components={self.name: [list(row) for row in rewards]},
            counts_by_name=found.counts_by_name | {k: float(n) for k, n in counts.items()},
        )

    def _refuses(self, text: str | None) -> bool:
        said = (text or "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").casefold()
        return any(phrase.casefold() in said for phrase in self.refusals)

    def _is_known(self, rights: Sequence[bool | None]) -> bool:
        judged = [each for each in rights if each is not None]
        return bool(judged) and sum(judged) / len(judged) >= self.known

    def _reward(
        self, refuses: bool, is_right: bool | None, known: bool, counts: Counter[str]
    ) -> float | None:
        if refuses:
            counts["refused"] += 1
            return self.refused
        if is_right is None:
            return None
        if not is_right:
            return self.wrong
        if not known:
            counts["lucky"] += 1
            return None
        return self.right
