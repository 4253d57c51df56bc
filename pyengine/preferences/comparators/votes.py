"""A model that argues which of two responses is better, several times, and the majority of what it
concludes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pyengine.errors import ConfigError
from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.comparators.judge_prompt import JudgePrompt, judge_prompt
from pyengine.preferences.comparators.orders import (
    asked_orders,
    check_duels,
    first_place,
    verdicts,
)
from pyengine.preferences.groups import Group
from pyengine.preferences.questions import ANY_TEXT, TEXT, Asker
from pyengine.rules import COUNT, POSITIVE, SWITCH, WHOLE, check_fields, checked, or_none

COUNTED = (
    "judgements", "unparsed", "prompt_tokens", "sampled_tokens", "first_place",
    "both_orders", "swap_disagreements", "ties", "too_long", "failures",
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """Judgements in words: of each question its group of n, and why others were not asked.

    A question is a duel whose first response stands first in it.
    """

    judgements: dict[Duel, Group]
    why: dict[Duel, str]
    counts: dict[str, float]


@dataclass(frozen=True)
class Votes:
    """Samples judgements with their reasons and takes the share of verdicts for each response.

    A judgement ends in `marker` and a label; one that does not is no vote, and counted. A duel has
    no verdict where all judgements of one order are so. P is the share of the votes for its first
    response, the mean of both orders.

    model            what is asked; it needs a tokenizer
    n                judgements of each question; with both orders twice as many of each duel
    label_a, label_b, tie_label  the verdicts that the first, the second or neither is better; a
                     verdict of neither is half a vote for each. tie_label None: it must choose
    marker           what stands before a verdict
    template, criteria, criteria_column  see pairwise_judge
    both_orders      ask with either response first
    temperature      of sampling; > 0
    max_new_tokens   of a judgement
    max_tokens       of a question with its judgement. None: what the model takes
    seed             of the draws, which depend on it and on the question alone

    Counted: "judgements" that were parsed, "unparsed" ones, "prompt_tokens", "sampled_tokens",
    "first_place", the votes for what stood first, "both_orders", pairs that were judged in both,
    "swap_disagreements", those of them where the same place won twice, "ties" of pairs, "too_long"
    questions, "failures", duels without a verdict.
    Source: Ye et al., arXiv:2410.03742, section 3.
    """

    name: ClassVar[str] = "votes"
    model: AsksModel | str = bound("model", "policy")
    n: int = checked(3, COUNT)
    label_a: str = checked("A", TEXT)
    label_b: str = checked("B", TEXT)
    tie_label: str | None = checked(None, or_none(TEXT))
    marker: str = checked("Verdict:", TEXT)
    template: str | None = checked(None, or_none(TEXT))
    criteria: str = checked("", ANY_TEXT)
    criteria_column: str | None = checked(None, or_none(TEXT))
    both_orders: bool = checked(True, SWITCH)
    temperature: float = checked(1.0, POSITIVE)
    max_new_tokens: int = checked(256, COUNT)
    max_tokens: int | None = checked(None, or_none(COUNT))
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"[{self.name}] labels must differ but are {list(self.labels)}")
        self._prompt()  # checks the template

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return () if self.criteria_column is None else (self.criteria_column,)

    @property
    def labels(self) -> tuple[str, ...]:
        """The verdicts: the first is better, the second is, and neither."""
        tie = () if self.tie_label is None else (self.tie_label,)
        return (self.label_a, self.label_b, *tie)

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """The share of the votes for the first of each duel; one call of the model.

        Raises RequestError as pairwise_judge does.
        """
        judged = self.judge(groups, duels)
        counts: dict[str, float] = {**dict.fromkeys(COUNTED, 0), **judged.counts}
        answers: dict[Duel, list[float]] = {}
        why = dict(judged.why)
        for duel, group in judged.judgements.items():
            votes = [self.verdict(response.text or "") for response in group.responses]
            parsed = [vote for vote in votes if vote is not None]
            counts["unparsed"] += len(votes) - len(parsed)
            counts["judgements"] += len(parsed)
            if not parsed:
                why[duel] = "no judgement ends in a verdict"
                continue
            answers[duel] = [parsed.count(i) / len(parsed) for i in range(len(self.labels))]
            counts["first_place"] += first_place(answers[duel]) * len(parsed)
        return verdicts(
            self.name, duels, answers, why, both=self.both_orders, tie_margin=0.0, counts=counts
        )

    def judge(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Judged:
        """The judgements themselves, of either order, for a model that learns to judge.

        Raises RequestError as pairwise_judge does.
        """
        check_bound(self)
        check_duels(self.name, groups, duels)
        prompt = self._prompt()
        asker = Asker(self.name, cast(AsksModel, self.model), prompt.template, self.max_tokens)
        orders = asked_orders(duels, self.both_orders)
        questions = prompt.questions(asker, groups, orders, self.max_new_tokens)
        why = {duel: q.error for duel, q in questions.items() if q.error}
        sent = [duel for duel in orders if duel not in why]
        prompts = [questions[duel].prompt_ids for duel in sent]
        said: list[Group] = []
        if prompts:
            said = asker.model.sample(
                prompts,
                n=self.n,
                max_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
                request_ids=[_request_id(ids) for ids in prompts],
            )
        counts: dict[str, float] = {
            "too_long": sum(q.too_long for q in questions.values()),
            "prompt_tokens": sum(map(len, prompts)),
            "sampled_tokens": sum(len(r.token_ids) for g in said for r in g.responses),
        }
        return Judged(dict(zip(sent, said, strict=True)), why, counts)

    def verdict(self, text: str) -> int | None:
        """Which of `labels` a judgement ends in; None: none."""
        _, found, after = text.rpartition(self.marker)
        said = after.strip("*[]()\"'` \n") if found else ""
        for label in sorted(self.labels, key=len, reverse=True):
            rest = said[len(label) :]
            if said.startswith(label) and not (rest[:1].isalnum() or rest[:1] == "_"):
                return self.labels.index(label)
        return None

    def _prompt(self) -> JudgePrompt:
        even = ""
        if self.tie_label is not None:
            even = f', or "{self.marker} {self.tie_label}" if neither is'
        ending = (
            "Which response is better? Give your reasons in a few sentences. Then end with "
            f'"{self.marker} {self.label_a}" if it is Response A, with '
            f'"{self.marker} {self.label_b}" if it is Response B{even}.'
        )
        return judge_prompt(self, ending)


def _request_id(prompt_ids: Sequence[int]) -> int:
    """Of the question's content, so that the same question gets the same judgements."""
    text = ",".join(map(str, prompt_ids))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
