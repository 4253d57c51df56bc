"""The folders of a run's ranks: the first writes the run's, others what nobody reads."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pyengine.errors import ConfigError
from pyengine.ranks.world import World, all_well, first_of
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import dump_recipe
from pyengine.recipes.schema.recipe import Recipe

_LINES = ("recipe", "inputs", "metrics", "samples", "round_samples", "verdicts")


@contextmanager
def own_folder(recipe: Recipe, out: Path, resume: bool, world: World) -> Iterator[RunFolder]:
    """Where this rank keeps a run's line files; checkpoints are those of `out` for all.

    Of a run that is resumed every rank begins with the first one's lines.
    Raises RankError where recipe or folder are not those of the first rank.
    """
    folder = RunFolder(out)
    if world.size == 1:
        yield folder
        return

    def lines() -> dict[str, str]:
        paths = {name: getattr(folder, name) for name in _LINES}
        return {
            name: path.read_text(encoding="utf-8")
            for name, path in paths.items()
            if resume and path.exists()
        }

    mine = {"recipe": dump_recipe(recipe), "out": str(out)}
    told = first_of(world, lambda: mine | {"lines": lines()})
    all_well(world, lambda: _check_same(told, mine))
    if world.rank == 0:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pyengine-rank-") as scratch:
        own = RunFolder(scratch, folder.checkpoints)
        for name, text in told["lines"].items():
            getattr(own, name).write_text(text, encoding="utf-8")
        yield own


def first_date(world: World, folder: RunFolder, resume: bool) -> datetime:
    """What the run's templates take for today, the same for all ranks."""

    def date() -> str:
        found = folder.date() if resume else datetime.now().replace(microsecond=0)
        return found.isoformat()

    return datetime.fromisoformat(first_of(world, date))


def _check_same(first: dict[str, str], mine: dict[str, str]) -> None:
    for name, value in mine.items():
        ours, theirs = value.splitlines(), first[name].splitlines()
        if ours != theirs:
            pairs = itertools.zip_longest(ours, theirs, fillvalue="")
            here, there = next(pair for pair in pairs if pair[0] != pair[1])
            raise ConfigError(
                f"[ranks] {name} must be that of rank 0, {there.strip()!r:.80}, "
                f"but is {here.strip()!r:.80}"
            )
