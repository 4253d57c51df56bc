"""Rotary position embedding: its options, its frequencies and its tables."""

from __future__ import annotations

import math
from typing import Any, cast, get_args

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.models.config import ConfigReader, show
from pyengine.models.spec import RopeScaling, RopeSpec

# ---------------------------------------------------------------- options


def parse_rope(
    reader: ConfigReader, max_positions: int, default_theta: float = 10_000.0
) -> RopeSpec:
    """Rope options in either spelling: rope_theta + rope_scaling, or rope_parameters.

    Raises: ConfigError for a scaling, a key or a value that is not supported.
    """
    old, new = reader.get("rope_scaling"), reader.get("rope_parameters")
    if old and new and old != new:
        raise reader.refuse(
            f"rope_scaling and rope_parameters must be equal but are {show(old)} and {show(new)}"
        )
    nested = reader.nested("rope_scaling") or reader.nested("rope_parameters")
    options = nested or ConfigReader({}, reader.where)
    theta = _either(reader, options, "rope_theta", default_theta)
    for where in (reader, options):
        if where.get("partial_rotary_factor", 1.0) != 1.0:
            value = where.get("partial_rotary_factor")
            raise where.refuse(f"partial_rotary_factor must be 1 but is {show(value)}")
    fields: dict[str, Any] = {"theta": theta, "scaling": _scaling_name(options)}
    if fields["scaling"] != "default":
        fields |= _scaling_fields(reader, options, fields["scaling"], max_positions)
    elif reader.has("original_max_position_embeddings"):
        reader.only("original_max_position_embeddings", max_positions)
    options.finish(frozenset())
    return RopeSpec(**fields)


def _either(outer: ConfigReader, inner: ConfigReader, key: str, default: float) -> float:
    """An option that may stand beside the rope object or in it, but not with two values."""
    values = [r.number(key, above=1.0) for r in (inner, outer) if r.get(key) is not None]
    if len(set(values)) > 1:
        raise outer.refuse(f"{key} must have one value but has {values[0]} and {values[1]}")
    return values[0] if values else default


def _scaling_name(options: ConfigReader) -> RopeScaling:
    name, legacy = options.get("rope_type"), options.get("type")
    if name is not None and legacy is not None and name != legacy:
        raise options.refuse(
            f"rope_type and type must be equal but are {show(name)} and {show(legacy)}"
        )
    name = name or legacy or "default"
    supported = get_args(RopeScaling)
    if name not in supported:
        raise options.refuse(f"rope_type must be one of {supported} but is {show(name)}")
    return cast(RopeScaling, name)


def _scaling_fields(
    outer: ConfigReader, options: ConfigReader, scaling: RopeScaling, max_positions: int
) -> dict[str, Any]:
    if scaling == "linear":
        return {"factor": options.number("factor")}
    key = "original_max_position_embeddings"
    original = options.integer(key, outer.get(key, max_positions))
    outer.only(key, original)
    fields: dict[str, Any] = {"original_max_positions": original}
    if scaling == "llama3":
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            fields[name] = options.number(name)
        if fields["low_freq_factor"] >= fields["high_freq_factor"]:
            raise options.refuse(
                f"low_freq_factor must be below high_freq_factor = {fields['high_freq_factor']} "
                f"but is {fields['low_freq_factor']}"
            )
        return fields
    factor = options.number("factor", max_positions / original)
    return fields | {
        "factor": factor,
        "beta_fast": options.number("beta_fast", 32.0),
        "beta_slow": options.number("beta_slow", 1.0),
        "truncate": options.boolean("truncate", True),
        "attention_factor": _yarn_attention_factor(options, factor),
    }


def _yarn_attention_factor(options: ConfigReader, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = options.get("attention_factor")
    numerator, denominator = options.get("mscale"), options.get("mscale_all_dim")
    if given is not None:
        return options.number("attention_factor")
    if numerator and denominator:
        return mscale(options.number("mscale")) / mscale(options.number("mscale_all_dim"))
    return mscale(1.0)


# ---------------------------------------------------------------- frequencies


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each rotated pair, (head_dim / 2,) float32.

    Computed in float32 in the order of operations that published checkpoints were trained with.

    Source: arXiv:2104.09864; linear: arXiv:2306.15595; llama3: arXiv:2407.21783; yarn:
    arXiv:2309.00071.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    powers = spec.theta**exponents
    if spec.scaling == "linear":
        return 1.0 / powers / spec.factor
    if spec.scaling == "llama3":
        return _llama3_frequencies(spec, 1.0 / powers)
    if spec.scaling == "yarn":
        return _yarn_frequencies(spec, powers, head_dim)
    return 1.0 / powers


def _llama3_frequencies(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Long wavelengths are interpolated, short ones kept, those between are blended."""
    low, high, length = spec.low_freq_factor, spec.high_freq_factor, spec.original_max_positions
    wavelengths = 2 * math.pi / plain
    is_long = wavelengths > length / low
    is_short = wavelengths < length / high
    blend = (length / wavelengths - low) / (high - low)
    blended = (1 - blend) * plain / spec.factor + blend * plain
    return torch.where(is_long, plain / spec.factor, torch.where(is_short, plain, blended))


def _yarn_frequencies(spec: RopeSpec, powers: Tensor, head_dim: int) -> Tensor:
    """A ramp over dimensions from extrapolation (fast) to interpolation (slow), section 3.2."""

    def dimension(rotations: float) -> float:
        turns = spec.original_max_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(spec.theta))

    first, last = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # a ramp of no width would divide by zero
    steps = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    ramp = (steps - first) / (last - first)
    kept = 1 - ramp.clamp(0, 1)
    return (1.0 / (spec.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


# ---------------------------------------------------------------- tables


# cos and sin (P, head_dim / 2) float32, positions (T,) int64
Rotation = tuple[Tensor, Tensor, Tensor]


class RotaryTable:
    """cos and sin of every position, float32, made once and shared by all layers.

    A looked-up value depends on the position alone, whatever the batch looks like. Tables are
    made on the CPU in blocks of fixed size, so growing them never changes a row.
    """

    BLOCK = 2048
    # Up to this length a table on an accelerator is made whole, so that no step waits for
    # the largest position to reach the host (64 MiB with head_dim 128).
    WHOLE = 131_072

    def __init__(self, spec: RopeSpec, head_dim: int, max_positions: int) -> None:
        self._spec = spec
        self._frequencies = inverse_frequencies(spec, head_dim)
        self._max_positions = max_positions
        self._cos = self._sin = self._frequencies.new_empty((0, head_dim // 2))

    def rotation(self, positions: Tensor) -> Rotation:
        """What `ops.rope` takes beside x: tables that hold `positions` (T,), on their device.

        Raises: RequestError for a position outside [0, max_positions), where the check is free
        of waiting (on the CPU and in very long contexts).
        """
        needed = self._max_positions
        if positions.device.type == "cpu" or needed > self.WHOLE:
            needed = self._check(positions)
        if needed > self._cos.shape[0]:
            self._grow(needed)
        if self._cos.device != positions.device:
            self._cos = self._cos.to(positions.device)
            self._sin = self._sin.to(positions.device)
        return self._cos, self._sin, positions

    def _check(self, positions: Tensor) -> int:
        if positions.numel() == 0:
            return 0
        low, high = (int(bound) for bound in positions.aminmax())
        if low < 0 or high >= self._max_positions:
            worst = low if low < 0 else high
            raise RequestError(
                f"[rope] positions must be in [0, {self._max_positions}) but one is {worst}"
            )
        return high + 1

    def _grow(self, needed: int) -> None:
        have, device = self._cos.shape[0], self._cos.device
        # Doubling keeps the number of growths small while a sequence is generated.
        wanted = min(max(needed, 2 * have), max(needed, self._max_positions))
        blocks = [(self._cos, self._sin)]
        with torch.inference_mode(False), torch.no_grad():
            for start in range(have, wanted, self.BLOCK):
                end = start + self.BLOCK
                steps = torch.arange(start, end, dtype=torch.float32, device="cpu")
                angles = steps[:, None] * self._frequencies
                scale = self._spec.attention_factor
                cos, sin = angles.cos() * scale, angles.sin() * scale
                blocks.append((cos.to(device), sin.to(device)))
            self._cos = torch.cat([cos for cos, _ in blocks])
            self._sin = torch.cat([sin for _, sin in blocks])
