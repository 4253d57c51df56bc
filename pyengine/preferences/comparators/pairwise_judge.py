"""A model that is asked which of two responses is better, and answers with a label."""

from __future__ import annotations

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
from pyengine.preferences.questions import ANY_TEXT, TEXT, Asker, answer_of, mass
from pyengine.rules import COUNT, FRACTION, POSITIVE, SWITCH, Rule, check_fields, checked, or_none

TIE_MARGIN = Rule("in [0, 0.5]", lambda value: FRACTION.holds(value) and value <= 0.5)
COUNTED = (
    "judgements", "prompt_tokens", "first_place", "label_mass", "both_orders", "swap_disagreements",
    "ties", "too_long", "failures",
)  # fmt: skip


@dataclass(frozen=True)
class PairwiseJudge:
    """Asks a model which of two responses is better and reads how likely each label is.

    P is the softmax of the labels' log-probs at `temperature`; the mean over both orders of the two
    responses takes out what the judge thinks of places. With model "policy" the policy judges
    itself. Questions that begin alike are computed once.

    model            what is asked; it needs a tokenizer
    label_a, label_b  what it answers where the first, or the second, response is better. Of a label
                     of several tokens the log-probs are summed. Where the model has no chat
                     template, a blank stands before each
    tie_label        what it answers where they are equally good; None: it must choose
    template         the question, with {prompt}, {a}, {b}, and {criteria} where there are any;
                     None: one that is ours
    criteria         what to judge by, in words
    criteria_column  the column of the rows that says it for each prompt
    both_orders      ask with either response first, and take the mean
    tie_margin       a duel with |P - 1/2| below it is a tie: P is 1/2; in [0, 0.5]
    temperature      of the labels among themselves; > 0
    min_mass         a judgement whose labels together are less likely than this is none, for the
                     model would say something else; in [0, 1]
    max_tokens       of a question with its answer; a longer one is not asked. None: what the model
                     takes

    Counted: "judgements", the questions answered; "prompt_tokens" of them; "first_place", the sum
    of P of what stood first, so half of the judgements where places do not matter; "label_mass",
    the sum of the labels' probabilities; "both_orders", pairs that were answered in both, and
    "swap_disagreements", those of them where the same place won twice; "ties" of pairs; "too_long"
    questions; "failures", duels without a verdict.
    Source: Lee et al., arXiv:2402.11253, section 3; both orders, Zheng et al., arXiv:2306.05685,
    section 3.4.
    """

    name: ClassVar[str] = "pairwise_judge"
    model: AsksModel | str = bound("model", "policy")
    label_a: str = checked("A", TEXT)
    label_b: str = checked("B", TEXT)
    tie_label: str | None = checked(None, or_none(TEXT))
    template: str | None = checked(None, or_none(TEXT))
    criteria: str = checked("", ANY_TEXT)
    criteria_column: str | None = checked(None, or_none(TEXT))
    both_orders: bool = checked(True, SWITCH)
    tie_margin: float = checked(0.0, TIE_MARGIN)
    temperature: float = checked(1.0, POSITIVE)
    min_mass: float = checked(0.0, FRACTION)
    max_tokens: int | None = checked(None, or_none(COUNT))

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
        """What the model may answer: the first is better, the second is, and neither."""
        tie = () if self.tie_label is None else (self.tie_label,)
        return (self.label_a, self.label_b, *tie)

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """P(first is preferred to second) of each duel; one call of the model.

        Raises RequestError for a duel that cannot be, a group without its criteria, or a model
        without a tokenizer, before anything is asked.
        """
        check_bound(self)
        check_duels(self.name, groups, duels)
        prompt = self._prompt()
        asker = Asker(self.name, cast(AsksModel, self.model), prompt.template, self.max_tokens)
        labels = asker.labels(self.labels)
        orders = asked_orders(duels, self.both_orders)
        questions = prompt.questions(asker, groups, orders, max(map(len, labels)))
        counts: dict[str, float] = dict.fromkeys(COUNTED, 0)
        counts["too_long"] = sum(q.too_long for q in questions.values())
        why = {duel: q.error for duel, q in questions.items() if q.error}
        sent = [duel for duel in orders if duel not in why]
        found = asker.logprobs([questions[duel].prompt_ids for duel in sent], labels)
        answers: dict[Duel, list[float]] = {}
        for duel, logprobs in zip(sent, found, strict=True):
            counts["prompt_tokens"] += len(questions[duel].prompt_ids)
            counts["label_mass"] += mass(logprobs)
            answer = answer_of(logprobs, self.temperature, self.min_mass)
            if isinstance(answer, str):
                why[duel] = answer
                continue
            answers[duel] = answer
            counts["judgements"] += 1
            counts["first_place"] += first_place(answer)
        return verdicts(
            self.name,
            duels,
            answers,
            why,
            both=self.both_orders,
            tie_margin=self.tie_margin,
            counts=counts,
        )

    def _prompt(self) -> JudgePrompt:
        even = "" if self.tie_label is None else f', or "{self.tie_label}" if neither is'
        ending = (
            f'Which response is better? Answer with "{self.label_a}" if it is Response A, with '
            f'"{self.label_b}" if it is Response B{even}.\n\nAnswer:'
        )
        return judge_prompt(self, ending)
