"""What a judge said of a run's rounds, kept on disk, so that it is not asked twice.

A run that was broken off within a round's updates is resumed before that round. Its samples are
drawn again, the same to the bit; the judge need not say the same again, and its answers may cost
money: those on file are taken. A round that the judge's failure ended has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyengine.errors import CheckpointError, RequestError
from pyengine.loops.steps import Verdict
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.reports.writers.jsonl import append_lines, read_lines


class Verdicts:
    """Verdicts on file: see steps.Remember.

    path      a line file: {"round", "digest", "retries", "feedback"} of each round that was judged,
              and the reason where there is no feedback, because the round was skipped
    replayed  how many verdicts were taken from there
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replayed = 0
        rows = read_lines(path) if path.exists() else []
        self._known = {(row["round"], row.get("digest")): row for row in rows}

    def has(self, round_number: int) -> bool:
        """Whether anything was said of that round."""
        return any(number == round_number for number, _ in self._known)

    def __call__(
        self, round_number: int, groups: Sequence[Group], ask: Callable[[], Verdict]
    ) -> Verdict:
        """The verdict on file of that round and those responses, or the judge's, then on file."""
        digest = digest_of(groups)
        row = self._known.get((round_number, digest))
        if row is not None:
            verdict = self._read(row, groups)
            self.replayed += 1
            return verdict
        verdict = ask()
        feedback = None if verdict.feedback is None else verdict.feedback.to_json()
        row = {"round": round_number, "digest": digest, "retries": verdict.retries}
        row |= {"feedback": feedback} if feedback is not None else {"reason": verdict.reason}
        append_lines(self.path, [row])
        # A resumed run finds it too, where a sampler asks about what its round is then judged by.
        self._known = {k: row for k, row in self._known.items() if k[0] >= round_number}
        self._known[(round_number, digest)] = row
        return verdict

    def _read(self, row: dict[str, Any], groups: Sequence[Group]) -> Verdict:
        retries = row.get("retries", 0)  # older files did not count them
        if "reason" in row:
            return Verdict(None, retries, row["reason"])
        try:
            feedback = Feedback.from_json(row["feedback"])
            feedback.check_shape([len(g.responses) for g in groups])
        except (RequestError, TypeError, LookupError) as error:
            raise CheckpointError(f"[{self.path}] must hold feedback but {error}") from error
        return Verdict(feedback, retries)


def digest_of(groups: Sequence[Group]) -> str:
    """SHA-256 of the prompts' and responses' token ids, in order."""
    ids = [[g.prompt_ids, *[r.token_ids for r in g.responses]] for g in groups]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
