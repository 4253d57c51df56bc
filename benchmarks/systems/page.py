"""The page of all systems: what runs each, what its paper claims, and what ours shows.

    python benchmarks/systems/page.py [--write docs/systems.md]

Made of files alone: rows/*.yaml, the packaged recipes, docs/claims.md, and results.json, which
benchmarks/every_recipe.py measured.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from systems.catalogue import BASELINES, Family, System, load_families  # noqa: E402
from systems.results import Row, figure, read_results  # noqa: E402

from pyengine.recipes.schema.packaged import PACKAGED, packaged_recipes  # noqa: E402
from pyengine.recipes.schema.summary import Summary, summary_of  # noqa: E402

CLAIMS = ROOT / "docs" / "claims.md"
_CLAIM = re.compile(r"^\| (?P<title>.*) \((?P<paper>arXiv:[\d.]+)\) \| .*? \| (?P<shown>\S+)")


@dataclass(frozen=True)
class Known:
    """What there is of the systems.

    recipes  system -> its recipes
    claims   paper -> (title, whether it is shown) of each experiment on it
    results  recipe -> what its small run came to
    """

    recipes: Mapping[str, Sequence[Summary]]
    claims: Mapping[str, Sequence[tuple[str, bool]]]
    results: Mapping[str, Row] = field(default_factory=dict)


def known() -> Known:
    """From the files."""
    recipes: dict[str, list[Summary]] = {}
    for name in packaged_recipes():
        summary = summary_of(name)
        recipes.setdefault(summary.system or "", []).append(summary)
    claims = claims_of(CLAIMS.read_text(encoding="utf-8"))
    return Known(recipes, claims, {row["recipe"]: row for row in read_results()})


def claims_of(page: str) -> dict[str, list[tuple[str, bool]]]:
    """paper -> (title, whether it is shown) of the rows of docs/claims.md."""
    claims: dict[str, list[tuple[str, bool]]] = {}
    for match in filter(None, map(_CLAIM.match, page.splitlines())):
        title = match["title"].replace("\\|", "|")
        claims.setdefault(match["paper"], []).append((title, match["shown"] == "yes"))
    return claims


def page(families: Sequence[Family], facts: Known) -> str:
    """docs/systems.md."""
    published = [s for f in families if f.file != BASELINES for s in f.systems]
    with_recipe = sum(bool(recipes_of(s, facts)) for s in published)
    lines = [
        "# Systems",
        "",
        f"The {len(published)} published systems, of which {with_recipe} have a recipe, and what",
        "they are compared with: printed by",
        "`python benchmarks/systems/page.py --write docs/systems.md`. A recipe runs the paper's",
        "algorithm on a small model, with its departures as comments in its file",
        "(`pyengine recipes show NAME`); the tests run every one of them. What ours shows are",
        "figures of small runs, first and last, and experiments of [claims.md](claims.md). A small",
        "run shows that the parts work together, and is too short for what a paper claims.",
        "",
        *measured_on(facts.results.values()),
    ]
    for family in families:
        lines += [
            f"## {family.title}",
            "",
            "| system | run by | the paper's claim | what ours shows | command |",
            "|---|---|---|---|---|",
            *(row(system, facts) for system in family.systems),
            "",
        ]
    return "\n".join(lines)


def measured_on(rows: Iterable[Row]) -> list[str]:
    """Where the figures come from."""
    places = Counter(
        (r["cpu"], r["isa"], r["threads"], r.get("beside", ""))
        for r in rows
        if r["status"] == "done"
    )
    if not places:
        return ["No small run has been measured yet.", ""]
    lines = ["The small runs were measured by `python benchmarks/every_recipe.py --out runs`:", ""]
    for (cpu, isa, threads, beside), count in sorted(places.items()):
        by = f"{threads} thread{'s' if threads > 1 else ''}"
        lines.append(f"- {count} on {cpu} ({isa}, {by}){f', beside {beside}' if beside else ''}")
    return [*lines, "", "Seconds are those of the whole command.", ""]


def row(system: System, facts: Known) -> str:
    """A system's line of the table."""
    recipes = recipes_of(system, facts)
    cells = (
        "<br>".join(filter(None, (f"**{system.name}**", title(system)))),
        "<br>".join(run_by(system, recipes)),
        system.claim,
        "<br>".join(shows(system, recipes, facts)),
        "<br>".join(commands(system, recipes)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def recipes_of(system: System, facts: Known) -> list[Summary]:
    """Those that name the system."""
    return [recipe for name in system.names for recipe in facts.recipes.get(name, ())]


def title(system: System) -> str:
    """Linked where the number is known."""
    if system.title is None:
        return ""
    if system.paper is None:
        return f"{system.title} (number not verified)"
    number = system.paper.removeprefix("arXiv:")
    return f"[{system.title}](https://arxiv.org/abs/{number}) ({system.paper})"


def run_by(system: System, recipes: Sequence[Summary]) -> list[str]:
    """Recipes with their parts; without one the parts that there are, and what is missing."""
    texts = []
    for recipe in recipes:
        parts = [f"{kind} {name}" for kind, name in recipe.parts.items()]
        data = ", ".join(file.removeprefix(PACKAGED) for file in recipe.data)
        all_parts = "; ".join([f"loop {recipe.loop}", *parts, f"data {data}"])
        of = f" after {recipe.paper}" if recipe.paper not in (None, system.paper) else ""
        texts.append(f"recipe `{recipe.name}`{of}: {all_parts}")
    if not recipes:
        texts.append("no recipe")
        texts += [f"{kind}: {', '.join(names)}" for kind, names in system.parts.items()]
    return texts + ([f"missing: {system.missing}"] if system.missing else [])


def shows(system: System, recipes: Sequence[Summary], facts: Known) -> list[str]:
    """Figures of small runs, experiments on the paper's claim, or why there is none."""
    texts = []
    for recipe in recipes:
        result = facts.results.get(recipe.name)
        if result is not None:
            texts.append(f"small run `{recipe.name}`: {figure(result)}, {result['seconds']:.0f} s")
    claims = facts.claims.get(system.paper or "", ())
    texts += [f"{'shown' if shown else '**not** shown'}: {claim}" for claim, shown in claims]
    if not claims:
        why = system.not_shown if recipes else "no recipe runs it"
        texts.append(f"not shown: {why}")
    return texts


def commands(system: System, recipes: Sequence[Summary]) -> list[str]:
    """What runs it, or says what there is."""
    if recipes:
        return [f"`pyengine align {recipe.name} --small`" for recipe in recipes]
    return [f"`pyengine parts {kind} {n}`" for kind, names in system.parts.items() for n in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the page; without it, it is printed")
    arguments = parser.parse_args()
    text = page(load_families(), known())
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
