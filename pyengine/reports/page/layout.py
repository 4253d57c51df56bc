"""The page itself: everything about the runs into one HTML file that needs no other.

Templates escape all that they print, and the page's own rules let a browser load and run nothing:
a model's text stays text, whatever it says.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import pyengine
from pyengine.errors import ConfigError
from pyengine.files import atomic_write
from pyengine.reports.page.curves import COLORS
from pyengine.reports.page.examples import evaluations, training_rounds
from pyengine.reports.page.findings.available import findings_of
from pyengine.reports.page.frontier import frontier_figure
from pyengine.reports.page.panels import figures
from pyengine.reports.page.record import RunRecord
from pyengine.reports.page.tables import counts_table, last_table, recipe_table
from pyengine.reports.page.time_split import time_split

MOST_RUNS = len(COLORS)
_TEMPLATES = Path(__file__).parent / "templates"
# Marks that turn the direction of the text around them.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def page(runs: Sequence[RunRecord]) -> str:
    """The HTML of one run, or of several side by side.

    Raises ConfigError for no run, or for more than can be told apart.
    """
    if not 0 < len(runs) <= MOST_RUNS:
        raise ConfigError(
            f"[report] runs must be 1 to {MOST_RUNS} side by side but are {len(runs)}"
        )
    drawn = figures(runs)
    frontier = frontier_figure(runs)
    if frontier is not None:
        drawn.insert(min(2, len(drawn)), frontier)
    return (
        _environment()
        .get_template("page.html")
        .render(
            runs=runs,
            colors=COLORS,
            findings=[findings_of(run) for run in runs],
            recipes=recipe_table(runs),
            figures=drawn,
            time=time_split(runs),
            counts=counts_table(runs),
            last=last_table(runs),
            evaluations=[evaluations(run) for run in runs],
            rounds=[training_rounds(run) for run in runs],
            version=pyengine.__version__,
        )
    )


def write_page(runs: Sequence[RunRecord], path: str | Path) -> None:
    """Writes the page; what stood at `path` is replaced. Raises as `page`, and CheckpointError
    where the disk refuses.
    """
    atomic_write(path, page(runs))


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def printable(value: Any) -> Any:
    """A text without characters that no page may hold or that reorder the text around them; they
    become U+FFFD. Called with whatever a template prints, before it is escaped.
    """
    if not isinstance(value, str) or value.isprintable():
        return value
    cleaned = "".join(c if c in "\n\t" or not _is_control(c) else "\ufffd" for c in value)
    return value if cleaned == value else cleaned


def _is_control(character: str) -> bool:
    """Whether it is no text that one can read."""
    return character in _TURNS or unicodedata.category(character) in ("Cc", "Cs")
