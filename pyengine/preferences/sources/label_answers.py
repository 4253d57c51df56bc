"""One question about each response, answered by a model with one of a few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyengine.preferences.feedback import SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.questions import Asker, answer_of, mass, prompt_text, response_text

COUNTED = ("judgements", "prompt_tokens", "label_mass", "too_long", "failures")


@dataclass
class LabelAnswers:
    """Of each response of each group.

    probabilities  of the labels among themselves; None where there is no answer
    status         "value", or "error" where the question could not be asked or answered
    errors         a message for each of those
    counts         "judgements", the questions answered; "prompt_tokens" of them; "label_mass", the
                   sum of the labels' probabilities; "too_long" questions; "failures"
    """

    probabilities: list[list[list[float] | None]]
    status: list[list[SampleStatus]]
    errors: list[str]
    counts: dict[str, float]


def ask_of_each(
    asker: Asker,
    groups: Sequence[Group],
    labels: Sequence[str],
    temperature: float,
    min_mass: float,
) -> LabelAnswers:
    """Asks about every response in one call of the model; a prompt is computed once.

    temperature  of the labels among themselves
    min_mass     an answer whose labels together are less likely than this is none
    """
    ids = asker.labels(labels)
    questions = {
        (g, k): asker.question(
            {
                "prompt": prompt_text(group, asker.tokenizer),
                "response": response_text(response, asker.tokenizer),
            },
            ("response",),
            max(map(len, ids)),
        )
        for g, group in enumerate(groups)
        for k, response in enumerate(group.responses)
    }
    sent = [place for place, question in questions.items() if not question.error]
    answers = asker.logprobs([questions[place].prompt_ids for place in sent], ids)
    found = LabelAnswers(
        [[None] * len(group.responses) for group in groups],
        [["error"] * len(group.responses) for group in groups],
        [],
        dict.fromkeys(COUNTED, 0),
    )
    why = {place: question.error for place, question in questions.items() if question.error}
    for place, logprobs in zip(sent, answers, strict=True):
        found.counts["prompt_tokens"] += len(questions[place].prompt_ids)
        found.counts["label_mass"] += mass(logprobs)
        answer = answer_of(logprobs, temperature, min_mass)
        if isinstance(answer, str):
            why[place] = answer
            continue
        g, k = place
        found.probabilities[g][k], found.status[g][k] = answer, "value"
        found.counts["judgements"] += 1
    found.counts["too_long"] = sum(q.too_long for q in questions.values())
    found.counts["failures"] = len(why)
    found.errors = [
        f"[{asker.who}] groups[{g}].responses[{k}]: {why[g, k]}" for g, k in sorted(why)
    ]
    return found
