"""The head of a reward model: a matrix (E, D) on hidden states, with the kernels' fixed order, and
what a folder says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.calls.requests import stop_ids
from pyengine.errors import ConfigError, ModelFileError
from pyengine.models.classifier import SCORE, LoadedClassifier, is_classifier
from pyengine.ops.linear import linear, linear_backward, linear_pack, linear_pack_columns
from pyengine.preferences.head_reading import READINGS, Reading, is_reading

INITIAL_STD = 0.02


class RewardHead:
    """E outputs of each state, in float32: a row's values depend on that row alone.

    weight  (E, D)
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight.detach().float().contiguous().clone())

    @classmethod
    def new(cls, outputs: int, width: int, seed: int) -> RewardHead:
        """Normal values of INITIAL_STD: heads of an ensemble begin apart."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(outputs, width, generator=generator) * INITIAL_STD)

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """(S, D) -> (S, E)."""
        out = linear(states, linear_pack(self.weight, "float32"))
        assert isinstance(out, Tensor)
        return out

    @torch.no_grad()
    def backward(self, dout: Tensor, states: Tensor) -> Tensor:
        """d loss / d states (S, D) from that of the outputs (S, E); the weight's is added to."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        linear_backward(dout, states, torch.tensor([0, len(states)]), self.weight.grad)
        dstates = linear(dout, linear_pack_columns(self.weight, "float32"))
        assert isinstance(dstates, Tensor)
        return dstates


def check_asked(outputs: int | None, ensemble: int | None) -> None:
    """Raises ConfigError for sizes that no head has."""
    for name, value in (("outputs", outputs), ("ensemble", ensemble)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(
                f"[RewardModel] {name} must be an integer >= 1 or None but is {value!r}"
            )
    if (outputs or 1) > 1 and (ensemble or 1) > 1:
        raise ConfigError(
            "[RewardModel] outputs or ensemble must be 1 "
            f"but they are {outputs} and {ensemble}: a head of an ensemble gives one reward"
        )


def head_sizes(
    model: LoadedClassifier, outputs: int | None, ensemble: int | None
) -> tuple[int, int]:
    """(outputs, ensemble). Raises ConfigError where a folder's head is another one."""
    if model.score is None:
        return outputs or 1, ensemble or 1
    rows = len(model.score)
    if model.heads is not None and outputs is None and ensemble is None:
        return model.heads
    found = (outputs or rows // (ensemble or 1), ensemble or 1)
    if found[0] * found[1] != rows or (model.heads or found) != found:
        said = "" if model.heads is None else f" (outputs {model.heads[0]}, heads {model.heads[1]})"
        raise ConfigError(
            f"[RewardModel] outputs and ensemble must be those of {SCORE}, which has {rows} rows"
            f"{said}, but are {outputs} and {ensemble}"
        )
    return found


def reading_of(model: LoadedClassifier, outputs: int) -> Reading | None:
    """What the folder says that outputs mean. Raises ModelFileError for what they cannot."""
    named = model.reading
    if named is None or is_reading(named, outputs):
        return named
    raise ModelFileError(
        f"[{model.source}] reading of the head must be one of {READINGS} and fit {outputs} outputs "
        f"but is {named!r:.80}"
    )


def padding_of(config: dict[str, Any], tokenizer: Tokenizer | None, vocab_size: int) -> int | None:
    """The folder's own where it has a head, or None: transformers then reads the last token. Of a
    new head one that ends no response: read is the last token that is not padding, and that should
    be an end token where there is one.

    A model without such a token takes its end token, which then is not read.
    """
    own = config.get("pad_token_id")
    if is_classifier(config):
        return own if type(own) is int else None
    ends = stop_ids(tokenizer, config, {})
    candidates = [i for i in (own, config.get("bos_token_id")) if i not in ends]
    candidates += [*sorted(ends), vocab_size - 1]
    return next(i for i in candidates if type(i) is int and 0 <= i < vocab_size)
