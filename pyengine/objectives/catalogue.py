"""What an objective's class says of itself: the formula, what goes in, the paper."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass

from pyengine.objectives.available import OBJECTIVES
from pyengine.objectives.core.objective import Objective
from pyengine.objectives.core.sequence import SequenceObjective

SIDE_WORDS = {
    "kl": "KL to the reference over the vocabulary",
    "entropy": "entropies",
    "sum_squares": "sums of squared probabilities",
    "alternatives": "log-probs of the likeliest other words",
}


@dataclass(frozen=True)
class Entry:
    """One objective.

    formula          first paragraph of the docstring
    text             the rest of it, without the source
    source           paper
    inputs           keywords of the plain function beside log-probs: (name, whether it must be
                     given)
    hyperparameters  (name, default, rule)
    """

    name: str
    cls: type[Objective]
    formula: str
    text: str
    source: str
    inputs: list[tuple[str, bool]]
    hyperparameters: list[tuple[str, object, str]]

    @property
    def needs(self) -> str:
        """In words."""
        objective = self.cls()  # some of this depends on hyperparameters: as with the defaults
        words = [f"mean over {objective.unit}s"]
        if objective.needs_reference:
            words.append("reference")
        if objective.needs_sampler:
            words.append("sampled log-probs")
        words += [SIDE_WORDS[side.name] for side in objective.side_outputs]
        words += [f"snapshot {name!r}" for name in objective.models]
        words += [name if must else f"{name} (optional)" for name, must in self.inputs]
        if objective.batch_global:
            words.append("depends on the whole batch")
        return ", ".join(words)


def catalogue() -> list[Entry]:
    """Every objective, by name."""
    return [_entry(cls) for cls in OBJECTIVES]


def _entry(cls: type[Objective]) -> Entry:
    doc = inspect.getdoc(cls) or ""
    body, _, source = doc.partition("Source:")
    formula, _, text = body.partition("\n\n")
    inputs: list[tuple[str, bool]] = []
    if issubclass(cls, SequenceObjective):
        further = [op for op in cls.operands if op not in ("chosen", "rejected", "response")]
        inputs += [(f"{op}_logps", True) for op in further]
        inputs += [(name, default is None) for name, default in cls.inputs.items()]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return Entry(
        cls.name,
        cls,
        " ".join(formula.split()),
        text.strip(),
        " ".join(source.split()),
        inputs,
        [(f.name, f.default, f.metadata["rule"].text) for f in fields],
    )


def markdown() -> str:
    """The page docs/objectives.md."""
    lines = [
        "# Objectives",
        "",
        "Made by `pyengine objectives --markdown` from the classes of `pyengine.objectives`. A name"
        " is what `pe.objectives.get`, a recipe's `objective:` and the plain functions take.",
        "",
    ]
    for entry in catalogue():
        lines += [
            f"## {entry.name}",
            "",
            f"`pe.objectives.{entry.cls.__name__}`: {entry.needs}.",
            "",
        ]
        lines += ["```text", entry.formula, "", *entry.text.splitlines(), "```", ""]
        if entry.hyperparameters:
            lines += ["| hyperparameter | default | must be |", "|---|---|---|"]
            lines += [f"| `{n}` | `{d!r}` | {rule} |" for n, d, rule in entry.hyperparameters]
            lines += [""]
        lines += [f"Source: {entry.source}", ""]
    return "\n".join(lines).rstrip() + "\n"
