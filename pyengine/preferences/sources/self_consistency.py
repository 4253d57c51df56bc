"""Pseudo labels: a response is right where it ends in the answer that most samples end in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import Gives
from pyengine.preferences.sources.verifiers.answer_span import between
from pyengine.preferences.sources.verifiers.numeric import last_number
from pyengine.preferences.sources.verifiers.verifier import TEXT
from pyengine.rules import FRACTION, check_fields, checked, or_none


@dataclass(frozen=True)
class SelfConsistency:
    """Rewards 1 for the answer that most of a prompt's samples give and 0 for others: no gold.

    after      an answer is what follows the last place of this text, blanks around it aside; None:
               the last number of the response
    min_share  of the samples that the most frequent answer must be given by, those without an
               answer counted too; the samples of another prompt abstain ("unsure")
    Where two answers are the most frequent, all abstain ("tied"), as where there is none
    ("silent"); else a response without an answer has 0. Labels say which agree. The column
    "agreement" is the share of the prompt's samples with the response's answer.
    A response without text is an error.
    Source: Wang et al., arXiv:2203.11171, section 2; as feedback, Jiao et al., arXiv:2411.16345,
    section 3.
    """

    name: ClassVar[str] = "self_consistency"
    gives: ClassVar[Gives] = Gives(labels=True, columns=("agreement",))
    after: str | None = checked(None, or_none(TEXT))
    min_share: float = checked(0.0, FRACTION)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A vote a prompt."""
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        agreement: list[list[float | None]] = []
        errors: list[str] = []
        counts = Counter(dict.fromkeys(("prompts", "unsure", "tied", "silent"), 0))
        for g, group in enumerate(groups):
            answers = [self._answer(response) for response in group.responses]
            votes = Counter(answer for answer in answers if answer is not None)
            most = self._majority(votes, len(answers), counts)
            texts = [response.text is not None for response in group.responses]
            errors += [
                f"[{self.name}] groups[{g}].responses[{k}]: the response must have a text but has "
                "none"
                for k, text in enumerate(texts)
                if not text
            ]
            judged = most is not None
            status.append(
                ["error" if not text else "value" if judged else "abstain" for text in texts]
            )
            rewards.append(
                [
                    float(answer == most) if judged and text else None
                    for answer, text in zip(answers, texts, strict=True)
                ]
            )
            agreement.append([None if a is None else votes[a] / len(answers) for a in answers])
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            labels=[[reward == 1 for reward in row] for row in rewards],
            columns={"agreement": agreement},
            counts_by_name={name: float(n) for name, n in counts.items()},
        )

    def _answer(self, response: Response) -> Hashable | None:
        if response.text is None:
            return None
        if self.after is None:
            return last_number(response.text)
        found = between(response.text, self.after, None)
        return None if found is None else found.strip() or None

    def _majority(
        self, votes: Counter[Hashable], samples: int, counts: Counter[str]
    ) -> Hashable | None:
        """The answer that is taken for right; None, counted under why, where there is none."""
        counts["prompts"] += 1
        first = votes.most_common(2)
        if not first:
            counts["silent"] += 1
            return None
        if len(first) == 2 and first[0][1] == first[1][1]:
            counts["tied"] += 1
            return None
        if first[0][1] < self.min_share * samples:
            counts["unsure"] += 1
            return None
        return first[0][0]
