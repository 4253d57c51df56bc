"""Files, functions and classes that the documents name are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WALK = ROOT / "docs" / "architecture.md"
MAP = ROOT / "CONTRIBUTING.md"
PLACE = r"(?:pyengine|csrc|cuda|bindings|tests|benchmarks|docs)/[\w./]*"


def code(document: Path) -> list[str]:
    """What stands in backticks, in order; fenced blocks are left out."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def names_in(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Functions and classes, methods as Class.method."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names_in(node.body, f"{prefix}{node.name}.")


@cache
def defined(path: Path) -> frozenset[str]:
    """What a Python file defines, or a C++ file with a body."""
    if path.suffix == ".py":
        return frozenset(names_in(ast.parse(path.read_text()).body))
    return frozenset(re.findall(r"^(?:[\w:<>*&]+ )+(\w+::\w+)\(", path.read_text(), re.MULTILINE))


@cache
def everywhere() -> frozenset[str]:
    """What the package defines, by full and by last name."""
    names = [name for path in (ROOT / "pyengine").rglob("*.py") for name in defined(path)]
    return frozenset([*names, *(name.split(".")[-1] for name in names)])


def located(document: Path) -> list[tuple[str, str]]:
    """(file, function) of each `function()`; a function is in the file that was named last."""
    found, place = [], ""
    for name in code(document):
        if re.fullmatch(PLACE, name):
            place = name
        elif re.fullmatch(r"[\w.:]+\(\)", name):
            found.append((place, name.removesuffix("()")))
    return found


def test_the_walk_is_long_enough_to_be_one() -> None:
    assert len(located(WALK)) > 50
    assert len({place for place, _ in located(WALK)}) > 25


@pytest.mark.parametrize(("place", "name"), located(WALK), ids=lambda value: value)
def test_functions_of_the_walk_are_in_their_files(place: str, name: str) -> None:
    assert name in defined(ROOT / place)


@pytest.mark.parametrize("document", [WALK, MAP], ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """From the repository's root; CONTRIBUTING also names rooms of the package from within it."""
    missing = []
    for name in code(document):
        is_place = re.fullmatch(PLACE, name) or re.fullmatch(r"[\w./]+(?:/|\.py)", name)
        if is_place and not any((top / name).exists() for top in (ROOT, ROOT / "pyengine")):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("document", [WALK, MAP], ids=lambda path: path.name)
def test_classes_and_functions_that_are_named_exist(document: Path) -> None:
    names = [n for n in code(document) if re.fullmatch(r"(?:[A-Z][a-z]+)+|\w+\(\)", n)]
    assert [n for n in names if n.removesuffix("()") not in everywhere()] == []


def test_map_has_every_room() -> None:
    rooms = {
        str(p.parent.relative_to(ROOT / "pyengine")) for p in (ROOT / "pyengine").rglob("*.py")
    }
    with_own_files = {
        room for room in rooms if len(list((ROOT / "pyengine" / room).glob("*.py"))) > 1
    }
    named = {name.rstrip("/") for name in code(MAP)}
    assert sorted(with_own_files - named - {"."}) == []


def test_changelog_has_each_section_once_and_links_last() -> None:
    _, body = (ROOT / "CHANGELOG.md").read_text().split("## [Unreleased]\n")
    assert re.findall(r"^### (\w+)$", body, re.MULTILINE) == ["Added", "Changed", "Fixed"]
    assert body.endswith("\n[Unreleased]: #unreleased\n")
    assert body.count("[Unreleased]:") == 1
