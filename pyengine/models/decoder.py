"""The one decoder of every family: what differs is in its DecoderSpec."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pyengine.errors import ConfigError, RequestError
from pyengine.models.layers import Attend, Block, Embedding, Matrix, Norm
from pyengine.models.rope import RotaryTable, Rotation
from pyengine.models.spec import DecoderSpec
from pyengine.ops.linear import StoredRows

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)


class Files(Protocol):
    """Where matrices are that are in no memory of the decoder's: see mapped.py."""

    def check(self) -> None:
        """To be called before they are read. Raises ModelFileError where one was written to."""

    def stored(self, matrix: Tensor) -> Tensor | StoredRows:
        """Where one of the decoder's matrices is, or some of its rows; or itself, if in memory."""

    def rows(self, matrix: Tensor, ids: Tensor) -> Tensor:
        """(T, K), row ids[t] of one of the decoder's matrices. Raises ModelFileError."""

    def let_go(self) -> None:
        """Of the memory of what was read as a tensor."""


class Decoder(nn.Module):
    """Token ids to final hidden states. Parameters are fp32 masters, not initialised here.

    Names: embed, positions (learned positions only), layers.N.{attn_norm, attn.{q,k,v,o},
    mlp_norm, mlp.{gate,up,down}}, final_norm, head (untied only), each with .weight or .bias.
    files: None, or what the matrices are mapped from.

    Raises: ConfigError for a compute dtype other than float32 and bfloat16.
    """

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dtype not in COMPUTE_DTYPES:
            raise ConfigError(f"[Decoder] dtype must be float32 or bfloat16 but is {dtype}")
        self.spec = spec
        self.compute_dtype = dtype
        self.files: Files | None = None
        self.embed = Embedding(spec.vocab_size, spec.hidden_size, dtype)
        self.positions: Embedding | None = None
        if spec.learned_positions:
            self.positions = Embedding(spec.max_positions, spec.hidden_size, dtype)
        self._rotary = {
            layer.rope: RotaryTable(layer.rope, spec.head_dim, spec.max_positions)
            for layer in spec.layers
            if layer.rope is not None
        }
        self.layers = nn.ModuleList(Block(spec, i, dtype) for i in range(spec.num_layers))
        self.final_norm = Norm(spec.hidden_size, spec, dtype, 1 / spec.logits_divisor)
        self.head = None if spec.tied_head else Matrix(spec.vocab_size, spec.hidden_size, dtype)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm, (T, D) in the compute dtype, over `logits_divisor`.

        token_ids, positions (T,) int64: all sequences of the call one after another, no padding.
        attend(layer, q (T, H, hd), k (T, K, hd), v (T, K, hd)) -> (T, H, hd) decides which keys a
        token sees and where they are kept; it scales by `spec.attention_scale`.

        Raises: RequestError for inputs of another shape or dtype.
        """
        for name, ids in (("token_ids", token_ids), ("positions", positions)):
            if ids.dtype != torch.int64 or ids.shape != (token_ids.numel(),):
                raise RequestError(
                    f"[Decoder] {name} must be int64 of shape ({token_ids.numel()},) "
                    f"but is {ids.dtype} of shape {tuple(ids.shape)}"
                )
        x = self.embed(token_ids)  # (T, D) fp32, the residual stream
        if self.spec.embedding_multiplier != 1:
            x = x * self.spec.embedding_multiplier
        if self.positions is not None:
            x = x + self.positions(positions)
        for block, rotation in zip(self.layers, self.rotations(positions), strict=True):
            x = block(x, rotation, attend)
        return cast(Tensor, self.final_norm(x))

    def rotations(self, positions: Tensor) -> list[Rotation | None]:
        """What each layer rotates q and k by at `positions` (T,); None where it does not.

        Raises: RequestError for a position that no table holds.
        """
        found = {rope: table.rotation(positions) for rope, table in self._rotary.items()}
        return [None if layer.rope is None else found[layer.rope] for layer in self.spec.layers]

    def head_weight(self) -> Tensor:
        """(V, D) in the compute dtype, differentiable; the embedding table where tied."""
        return (self.embed if self.head is None else self.head).compute_weight()

    def frozen_copy(self) -> Decoder:
        """An independent decoder with today's values and no gradients.

        In bfloat16 it stores matrices as bf16 only, a half of the masters' memory, and computes
        the same bits as this decoder does now.
        """
        with torch.device("meta"):
            frozen = Decoder(self.spec, self.compute_dtype)
        for name, parameter in self.named_parameters():
            dtype = self.compute_dtype if parameter.ndim == 2 else torch.float32
            value = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            with torch.no_grad():
                value.copy_(parameter)
            set_parameter(frozen, name, nn.Parameter(value, requires_grad=False))
        return frozen.requires_grad_(False).train(self.training)


def set_parameter(decoder: Decoder, name: str, parameter: nn.Parameter) -> None:
    """Puts `parameter` in the place of the one called `name`."""
    path, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(path), leaf, parameter)
