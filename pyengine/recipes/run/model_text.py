"""What a model reads of text, found out without its weights: data are checked before they load."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.persist.engine_state import load_tokenizer
from pyengine.errors import DataError
from pyengine.models.loader import read_spec
from pyengine.models.source import resolve


@dataclass(frozen=True)
class ModelText:
    """A model's tokenizer, if it has one, and its context in tokens."""

    tokenizer: Tokenizer | None
    max_positions: int

    @classmethod
    def of(cls, model: str, date: datetime) -> ModelText:
        """Of a model's files; templates take `date` for today. Raises as Engine.from_pretrained."""
        source = resolve(model)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None:
            tokenizer.date = date
        return cls(tokenizer, read_spec(source).max_positions)

    def required(self, what: str) -> Tokenizer:
        """The tokenizer. Raises DataError where there is none."""
        if self.tokenizer is None:
            raise DataError(f"[{what}] the model must have a tokenizer to read text but has none")
        return self.tokenizer
