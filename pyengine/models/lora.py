"""Low-rank adapters (LoRA) of a decoder's matrices: which there are, and what they add.

An adapted matrix is W + scale * B A, with A (r, K) and B (N, r) trained and W as it was. B starts
as zeros, so that the first forward pass is the base model's. Source: arXiv:2106.09685;
scale = alpha / sqrt(r): arXiv:2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder, set_parameter
from pyengine.models.families import FAMILIES
from pyengine.models.module_pattern import RULE, fits, is_pattern
from pyengine.models.spec import DecoderSpec
from pyengine.ops.linear import linear, linear_pack_columns

ALL_LINEAR = "all-linear"
_MATRIX = re.compile(r"layers\.\d+\.(attn\.[qkvo]|mlp\.(gate|up|down))\.weight")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_TABLES = ("lm_head", "embed_tokens", "wte", "wpe")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of a model. Raises ConfigError naming the field and its value.

    r              rank: rows of A
    alpha          the product B A is scaled by alpha / r
    targets        Hugging Face module names, whole ("model.layers.0.mlp.up_proj") or their ends
                   ("q_proj", "mlp.up_proj"); "all-linear": every matrix of the layers. The head and
                   tables of embeddings have no adapters
    use_rslora     scaled by alpha / sqrt(r) instead
    seed           of A's initial values, uniform within 1 / sqrt(K), as `peft` draws them
    rank_pattern   module name, whole or its end -> its own r; the first that fits counts, so their
                   order is kept. Keys are regular expressions, as for `peft`: "v_proj",
                   "layers.0.mlp.up_proj", "layers.[01].*"
    alpha_pattern  the same for alpha
    There is no dropout: an adapter that was trained with it elsewhere is loaded without.
    """

    r: int = 16
    alpha: float = 32
    targets: str | Sequence[str] = ALL_LINEAR
    use_rslora: bool = False
    seed: int = 0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.targets, (list, tuple)):
            object.__setattr__(self, "targets", tuple(self.targets))
        names = () if self.targets == ALL_LINEAR else self.targets
        checks = {
            "r": (_is_rank(self.r), "an integer >= 1"),
            "alpha": (_is_positive(self.alpha), "finite and > 0"),
            "targets": (
                isinstance(names, tuple)
                and (bool(names) or self.targets == ALL_LINEAR)
                and all(isinstance(n, str) and _NAME.fullmatch(n) for n in names),
                f"{ALL_LINEAR!r} or module names",
            ),
            "use_rslora": (isinstance(self.use_rslora, bool), "a bool"),
            "seed": (
                isinstance(self.seed, int) and -(2**63) <= self.seed < 2**63,
                "an integer of 64 bits",
            ),
            "rank_pattern": (
                _is_pattern(self.rank_pattern, _is_rank),
                f"a dict of integers >= 1 by {RULE}",
            ),
            "alpha_pattern": (
                _is_pattern(self.alpha_pattern, _is_positive),
                f"a dict of numbers > 0 by {RULE}",
            ),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ConfigError(
                    f"[LoraConfig] {name} must be {rule} but is {getattr(self, name)!r:.200}"
                )

    def rank(self, module: str) -> int:
        """The r of a module by its whole name."""
        return next((r for key, r in self.rank_pattern.items() if fits(key, module)), self.r)

    def scale(self, module: str) -> float:
        """What B A of a module is multiplied by."""
        patterns = self.alpha_pattern.items()
        alpha = next((a for key, a in patterns if fits(key, module)), self.alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def modules(self, spec: DecoderSpec) -> list[str]:
        """Whole names of the modules that have adapters, in the model's order.

        Raises ConfigError for a target that is no matrix of this model's layers.
        """
        all_names = list(adaptable(spec))
        if self.targets == ALL_LINEAR:
            return all_names
        for target in self.targets:
            if target.rpartition(".")[2] in _TABLES:
                raise ConfigError(
                    f"[LoraConfig] targets must be matrices of the layers but {target!r} is not: "
                    "the head and tables of embeddings have no adapters"
                )
            if not any(ends_with(name, target) for name in all_names):
                last = sorted({name.rpartition(".")[2] for name in all_names})
                raise ConfigError(
                    f"[LoraConfig] targets must be among {', '.join(last)} of {spec.family} "
                    f"but holds {target!r}"
                )
        return [n for n in all_names if any(ends_with(n, target) for target in self.targets)]


def ends_with(module: str, name: str) -> bool:
    """Whether `name` is a module's whole name or its last parts."""
    return module == name or module.endswith(f".{name}")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _is_pattern(value: Any, is_valid: Any) -> bool:
    return isinstance(value, Mapping) and all(
        is_pattern(key) and is_valid(number) for key, number in value.items()
    )


def adaptable(spec: DecoderSpec) -> dict[str, tuple[str, ...]]:
    """Hugging Face modules that may have an adapter, and our matrices that they are made of.

    More than one where the family fuses them: GPT-2's c_attn is q, k and v.
    """
    found = {}
    for tensor in FAMILIES[spec.family].tensors(spec):
        if all(_MATRIX.fullmatch(part) for part in tensor.parts):
            parts = tuple(part.removesuffix(".weight") for part in tensor.parts)
            found[tensor.name.removesuffix(".weight")] = parts
    return found


@dataclass(frozen=True, eq=False)
class Adapter:
    """The adapter of one module.

    parts  our names of the matrices that it covers, one below the other, in order
    A, B   (r, K) and (N, r) float32
    """

    parts: tuple[str, ...]
    scale: float
    A: nn.Parameter
    B: nn.Parameter

    def add_to(self, weight: Tensor) -> None:
        """weight (N, K) float32 += scale * B A, in place: the same bits for any thread count."""
        rows = self.B.detach() * self.scale
        linear(rows, linear_pack_columns(self.A, "float32"), residual=weight)


class Lora:
    """The adapters of a decoder by module; new ones add nothing yet.

    Raises ConfigError for targets that the decoder does not have.
    """

    def __init__(self, decoder: Decoder, config: LoraConfig) -> None:
        self.config = config
        self.spec = decoder.spec
        self.adapters: dict[str, Adapter] = {}
        generator = torch.Generator().manual_seed(config.seed)
        parts_of = adaptable(self.spec)
        for module in config.modules(self.spec):
            shapes = [decoder.get_parameter(f"{part}.weight").shape for part in parts_of[module]]
            rows, columns, rank = sum(s[0] for s in shapes), shapes[0][1], config.rank(module)
            bound = columns**-0.5
            a = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
            self.adapters[module] = Adapter(
                parts_of[module],
                config.scale(module),
                nn.Parameter(a),
                nn.Parameter(torch.zeros(rows, rank)),
            )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B by their names in `peft`, without its prefix."""
        named = {}
        for module, adapter in self.adapters.items():
            named[f"{module}.lora_A.weight"] = adapter.A
            named[f"{module}.lora_B.weight"] = adapter.B
        return named

    @torch.no_grad()
    def merged(self, decoder: Decoder) -> Decoder:
        """A frozen decoder of the sums. What has no adapter is shared; float32 where it has one."""
        with torch.device("meta"):
            merged = Decoder(decoder.spec, decoder.compute_dtype)
        for name, parameter in decoder.named_parameters():
            set_parameter(merged, name, nn.Parameter(parameter.detach(), requires_grad=False))
        for adapter in self.adapters.values():
            weights = [decoder.get_parameter(f"{part}.weight") for part in adapter.parts]
            whole = torch.cat([w.detach().float() for w in weights])
            adapter.add_to(whole)
            pieces = torch.split(whole, [len(w) for w in weights])
            for part, piece in zip(adapter.parts, pieces, strict=True):
                value = nn.Parameter(piece.clone(), requires_grad=False)
                set_parameter(merged, f"{part}.weight", value)
        return merged.requires_grad_(False)


def trained_parameters(decoder: Decoder, lora: Lora | None) -> dict[str, nn.Parameter]:
    """What is trained of a model, by name: its weights, or the adapters where it has such."""
    return dict(decoder.named_parameters()) if lora is None else lora.parameters


def adapter_sizes(spec: DecoderSpec, config: LoraConfig) -> list[tuple[int, int, int]]:
    """(rank, rows, columns) of every adapter: of B (rows, rank) and A (rank, columns)."""
    with torch.device("meta"):
        decoder = Decoder(spec)
    parts_of = adaptable(spec)
    found = []
    for module in config.modules(spec):
        shapes = [decoder.get_parameter(f"{part}.weight").shape for part in parts_of[module]]
        found.append((config.rank(module), sum(s[0] for s in shapes), shapes[0][1]))
    return found
