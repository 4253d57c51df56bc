"""What a judge said of a run's rounds, kept on disk, so that it is not asked twice.

A run that was broken off within a round's updates is resumed before that round. Its samples are
drawn again, the same to the bit; the judge need not say the same again, and its answers may cost
money: those on file are taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyengine.errors import CheckpointError, RequestError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Gives, Source, gives
from pyengine.reports.writers.jsonl import append_lines, read_lines


class RecordedSource:
    """A source whose verdicts are on file: of the same responses it gives the same feedback.

    path    a line file: {"round", "digest", "feedback"} of each round that was judged
    replayed  how many verdicts were taken from there
    """

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.path = source, path
        self.name = getattr(source, "name", type(source).__name__)
        self.round = 0  # of the next call, for the file's readers
        self.replayed = 0
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._known = {row["digest"]: row["feedback"] for row in read_lines(path)}

    @property
    def gives(self) -> Gives:
        """What the source gives."""
        return gives(self.source)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The verdict on file, or the source's, which is then on file."""
        digest = digest_of(groups)
        if digest in self._known:
            self.replayed += 1
            return self._read(digest, groups)
        feedback = self.source(groups)
        row = {"round": self.round, "digest": digest, "feedback": feedback.to_json()}
        append_lines(self.path, [row])
        return feedback

    def _read(self, digest: str, groups: Sequence[Group]) -> Feedback:
        try:
            feedback = Feedback.from_json(self._known[digest])
            feedback.check_shape([len(g.responses) for g in groups])
        except (RequestError, TypeError, LookupError) as error:
            raise CheckpointError(f"[{self.path}] must hold feedback but {error}") from error
        return feedback


def digest_of(groups: Sequence[Group]) -> str:
    """SHA-256 of the prompts' and responses' token ids, in order."""
    ids = [[g.prompt_ids, *[r.token_ids for r in g.responses]] for g in groups]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
