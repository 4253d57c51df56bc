"""The published systems: rows/*.yaml, one file a family."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROWS = Path(__file__).parent / "rows"
FAMILIES = (
    "offline", "iterative", "games", "imitation", "policy_gradients", "judges",
    "language_feedback", "baselines",
)  # fmt: skip
BASELINES = "baselines"  # what systems are compared with; not published systems of the list


@dataclass(frozen=True)
class System:
    """A published system.

    name       what recipes call it in `about: {system: ...}`
    also       further names, where a paper has several methods or a study several parts
    title      of its paper; None where there is none
    paper      "arXiv:2405.00675"; None where the number could not be verified
    claim      what the paper says, in a sentence
    parts      kind in the plural -> names, of a system that has no recipe
    missing    what there is not to run it with
    not_shown  why none of our experiments shows the claim, of a system that has a recipe
    """

    name: str
    claim: str
    also: list[str] = field(default_factory=list)
    title: str | None = None
    paper: str | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)
    missing: str | None = None
    not_shown: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.name, *self.also)


@dataclass(frozen=True)
class Family:
    """Systems that have a heading of their own."""

    file: str
    title: str
    systems: tuple[System, ...]


def load_families(folder: Path = ROWS) -> list[Family]:
    """All, in the order of the page."""
    families = []
    for file in FAMILIES:
        data = yaml.safe_load((folder / f"{file}.yaml").read_text(encoding="utf-8"))
        systems = tuple(System(**row) for row in data["systems"])
        families.append(Family(file, data["family"], systems))
    return families
