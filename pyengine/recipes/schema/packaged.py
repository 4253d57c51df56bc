"""What ships with pyengine: recipes by name, and their data files."""

from __future__ import annotations

from pathlib import Path

from pyengine.errors import ConfigError

PACKAGED = "packaged:"  # prefix of a data file that ships with pyengine
_ROOM = Path(__file__).parents[1]


def packaged_recipes() -> list[str]:
    """Names of the recipes that ship with pyengine."""
    return sorted(_recipes())


def packaged_path(name: str) -> Path:
    """The file of a packaged recipe.

    Raises ConfigError if there is none of that name.
    """
    known = _recipes()
    if name not in known:
        raise ConfigError(
            f"[recipe] {name} must be a .yaml file or one of the packaged recipes "
            f"({', '.join(sorted(known))})"
        )
    return known[name]


def data_path(file: str) -> Path:
    """The path of a data file, packaged or not.

    Raises ConfigError if there is no such packaged file.
    """
    if not file.startswith(PACKAGED):
        return Path(file)
    name = file.removeprefix(PACKAGED)
    known = {p.name: p for p in (_ROOM / "data").glob("*.jsonl")}
    if name not in known:
        raise ConfigError(
            f"[recipe] {file} must be one of {', '.join(PACKAGED + n for n in sorted(known))}"
        )
    return known[name]


def _recipes() -> dict[str, Path]:
    return {p.stem: p for p in (_ROOM / "library").glob("*/*.yaml")}
