"""Makes arithmetic_*.jsonl and sums_*.jsonl (train, heldout), which packaged recipes read, anew.

    python benchmarks/data/arithmetic.py pyengine/recipes/data

Sums and differences of one- and two-digit numbers: as questions in a chat, of which SmolLM2-135M
gets one of ten right, and as text to go on with after three that are solved, of which it gets more.
What is held out is held out by content: a sum of the same two numbers, in either order, is in the
train or the heldout files only.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SOLVED = "8 + 6 = 14\n48 - 5 = 43\n30 + 25 = 55\n"
PER_KIND, HELD_OUT = 80, 20  # questions of each kind, and how many of them are held out


def candidates(kind: str) -> Iterator[tuple[int, str, int]]:
    """(a, sign, b) of a kind, each content once; differences are not negative.

    "one"    of one-digit numbers
    "mixed"  of a two-digit and a one-digit number
    "two"    of two-digit numbers
    """
    first = range(1, 10) if kind == "one" else range(10, 100)
    second = range(10, 100) if kind == "two" else range(1, 10)
    for a in first:
        for b in second:
            if b <= a:
                yield a, "+", b
                yield a, "-", b


def rows(kind: str) -> list[Row]:
    """PER_KIND questions of a kind, in an order drawn by its name, each sum in either order."""
    draw = random.Random(f"arithmetic/{kind}")
    made: list[Row] = []
    for a, sign, b in draw.sample(list(candidates(kind)), PER_KIND):
        answer = a + b if sign == "+" else a - b
        if sign == "+" and draw.random() < 0.5:
            a, b = b, a
        question = f"What is {a} {sign} {b}? Answer with the number only."
        made.append({"prompt": [{"role": "user", "content": question}], "answer": str(answer)})
    return made


def traces(row: Row) -> list[str]:
    """Right answers as three teachers might write them, each longer than the one before."""
    a, sign, b = row["prompt"][0]["content"].split("?")[0].split()[2:]
    word = "plus" if sign == "+" else "minus"
    answer = row["answer"]
    return [answer, f"{a} {sign} {b} = {answer}", f"{a} {word} {b} makes {answer}."]


def files() -> dict[str, list[Row]]:
    """The rows of each file by its name; the kinds are mixed."""
    kinds = [rows(kind) for kind in ("one", "mixed", "two")]
    found = {
        "arithmetic_heldout.jsonl": [row for kind in kinds for row in kind[:HELD_OUT]],
        "arithmetic_train.jsonl": [
            row | {"traces": traces(row)} for kind in kinds for row in kind[HELD_OUT:]
        ],
    }
    for name, of_file in found.items():
        random.Random(f"arithmetic/{name}").shuffle(of_file)
    return found | {
        name.replace("arithmetic", "sums"): [as_sum(row) for row in of_file]
        for name, of_file in found.items()
    }


def as_sum(row: Row) -> Row:
    """The question as text that the answer continues, after three that are solved."""
    expression = row["prompt"][0]["content"].removeprefix("What is ").split("?")[0]
    a, sign, b = expression.split()
    found = {"prompt": f"{SOLVED}{expression} =", "answer": row["answer"]}
    if "traces" not in row:
        return found
    tens, ones = (int(a) // 10 * 10, int(b) // 10 * 10), (int(a) % 10, int(b) % 10)
    parts = [x + y if sign == "+" else x - y for x, y in (tens, ones)]
    joined = f"{parts[0]} {'-' if parts[1] < 0 else '+'} {abs(parts[1])}"
    answer = row["answer"]
    return found | {"traces": [f" {answer}", f" {answer} = {answer}", f" {joined} = {answer}"]}


def text(of_file: list[Row]) -> str:
    """A row a line."""
    return "".join(json.dumps(row) + "\n" for row in of_file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: arithmetic.py FOLDER")
    for name, of_file in files().items():
        (Path(sys.argv[1]) / name).write_text(text(of_file))
