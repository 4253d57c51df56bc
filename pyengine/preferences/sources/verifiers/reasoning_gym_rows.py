"""Rows of reasoning_gym: prompts with answers, split by what they say.

reasoning_gym draws item i of a set from seed + i, so sets whose seeds are near share items. Held
out is therefore what a digest of the question says, whatever seed and place it came from.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from pyengine.errors import ConfigError, MissingDependencyError

# What a prompt says behind its question, so that the answer can be found.
INSTRUCTION = "\n\nWrite the final answer between <answer> and </answer>."
# Their items also depend on the order of sets of texts, which Python draws anew in each process: so
# found of reasoning_gym 0.1.25 by making each of its sets under three hash seeds.
HASH_SEEDED = frozenset({
    "isomorphic_strings", "knight_swap", "polynomial_multiplication", "puzzle24", "ransom_note",
    "word_ladder",
})  # fmt: skip
_MISSING = '[reasoning_gym] reasoning_gym must be installed but is not: pip install "pyengine[gym]"'


def gym() -> Any:
    """The package. Raises MissingDependencyError."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingDependencyError(_MISSING) from error
    return reasoning_gym


def held_out(task: str, question: str, share: float) -> bool:
    """Whether a question belongs to the held-out share: a function of its text and task alone."""
    digest = hashlib.sha256(f"{task}\n{question}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def reasoning_rows(
    task: str,
    *,
    size: int,
    seed: int = 0,
    holdout: float = 0.1,
    instruction: str = INSTRUCTION,
    settings: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a reasoning_gym task to learn from, and those held out.

    size      items drawn, seed + 0 ... seed + size - 1; a question that comes again is left out
    holdout   share of all possible questions that is held out, in [0, 1)
    instruction  put behind each question
    settings  further fields of the task's config, {"min_digits": 2}

    A row has `prompt`, `answer` (None where only the task's own scorer can tell), `task` and
    `entry`, what reasoning_gym says of the item. No question is in both lists, of this call or of
    any two calls with one holdout.
    Raises ConfigError for a task or setting that is unknown, and for the tasks whose items depend
    on PYTHONHASHSEED unless it is set; MissingDependencyError.
    """
    reasoning_gym = gym()
    if type(size) is not int or size < 1:
        raise ConfigError(f"[reasoning_rows] size must be an integer >= 1 but is {size!r}")
    if not 0 <= holdout < 1:
        raise ConfigError(f"[reasoning_rows] holdout must be in [0, 1) but is {holdout!r}")
    if task in HASH_SEEDED and _hashes_are_random():
        raise ConfigError(
            f"[reasoning_rows] task {task!r} draws other items in each process: PYTHONHASHSEED "
            "must be set to a number but is not"
        )
    try:
        items = reasoning_gym.create_dataset(task, seed=seed, size=size, **(settings or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"[reasoning_rows] task {task!r} must be one that reasoning_gym makes but: {error}"
        ) from error
    learn: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    seen = set()
    for i in range(size):  # by index: iterating would add random ids
        item = items[i]
        if item["question"] in seen:
            continue
        seen.add(item["question"])
        row = {
            "prompt": item["question"] + instruction,
            "answer": item["answer"],
            "task": task,
            "entry": item,
        }
        (kept if held_out(task, item["question"], holdout) else learn).append(row)
    return learn, kept


def _hashes_are_random() -> bool:
    return sys.flags.hash_randomization == 1 and not os.environ.get("PYTHONHASHSEED", "").isdigit()
