"""Rotary positions: bit-equal frequencies with transformers, tables, rotation, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models  # noqa: F401  (sets transformers offline)
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyengine.errors import ConfigError
from pyengine.models.config import ConfigReader
from pyengine.models.rope import RotaryTable, inverse_frequencies, parse_rope
from pyengine.models.spec import RopeSpec
from pyengine.ops import rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-betas": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn-mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn-attention-factor": YARN | {"attention_factor": 1.25},
    "yarn-narrow-ramp": YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
}


def theirs(scaling: dict[str, Any], theta: float) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=dict(scaling, rope_theta=theta),
    )
    if scaling["rope_type"] == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)


@pytest.mark.parametrize("theta", [10000.0, 1000000, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_frequencies_are_bit_equal_to_transformers(key: str, name: str, theta: float) -> None:
    want, want_factor = theirs(SCALINGS[name], theta)
    spec = parse_rope(ConfigReader({"rope_theta": theta, key: SCALINGS[name]}), 131072)
    assert torch.equal(inverse_frequencies(spec, 128), want)
    assert spec.attention_factor == want_factor


def test_theta_may_stand_in_rope_parameters_and_type_may_be_spelled_type() -> None:
    reader = ConfigReader({"rope_parameters": {"rope_theta": 7.0, "type": "linear", "factor": 2}})
    assert parse_rope(reader, 64) == RopeSpec(7.0, "linear", factor=2.0)


def test_defaults() -> None:
    assert parse_rope(ConfigReader({}), 64) == RopeSpec(10000.0)
    yarn = parse_rope(
        ConfigReader({"original_max_position_embeddings": 16, "rope_scaling": {"type": "yarn"}}), 64
    )
    assert (yarn.factor, yarn.original_max_positions) == (4.0, 16)


def test_table_equals_the_formula_and_growing_keeps_every_row() -> None:
    spec = RopeSpec(10000.0, "yarn", 4.0, 1024, attention_factor=1.1)
    whole, grown = RotaryTable(spec, 64, 5000), RotaryTable(spec, 64, 5000)
    positions = torch.arange(5000)
    cos, sin, same = whole.rotation(positions)
    assert same is positions
    angles = positions[:, None].double() * inverse_frequencies(spec, 64).double()
    # Angles are float32 products: half a unit in the last place of 5000 radians is 2.4e-4.
    assert (cos[:5000].double() - angles.cos() * 1.1).abs().max() < 3e-4
    assert (sin[:5000].double() - angles.sin() * 1.1).abs().max() < 3e-4
    for size in (1, 3, 2048, 2049, 5000):
        grown_cos, grown_sin, _ = grown.rotation(torch.tensor([size - 1]))
        assert size <= grown_cos.shape[0] == grown_sin.shape[0] <= cos.shape[0]
        assert torch.equal(grown_cos, cos[: grown_cos.shape[0]])
        assert torch.equal(grown_sin, sin[: grown_sin.shape[0]])


def test_rotation_against_complex_multiplication_and_its_gradient() -> None:
    table = RotaryTable(RopeSpec(100.0), 8, 32)
    positions = torch.tensor([0, 5, 31])
    cos, sin, _ = table.rotation(positions)
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = rope(x, cos, sin, positions)
    left, right = x.detach().chunk(2, -1)
    turned = torch.complex(left, right) * torch.complex(cos, sin)[positions].unsqueeze(1)
    assert torch.allclose(y, torch.cat((turned.real, turned.imag), -1), atol=1e-6)
    # A rotation keeps lengths, so d|y|²/dx = 2x.
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * x.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type must be .* 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type must be .* but is 'longrope'"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type must be one of .* but is 'mrope'"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "must be equal but are"),
        ({"rope_scaling": {"type": ["yarn"]}}, r"rope_type must be one of .* but is \['yarn'\]"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object but is 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a number in .* but is absent"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor must be .* but is -1"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 3}}, "beta = 3 is not supported"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor = 2.0 is not supp"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor must be below"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate must be true or false but is 1"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor must be .* but is 0"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 9},
            "original_max_position_embeddings must be 32768 but is 9",
        ),
        ({"rope_theta": 0}, r"rope_theta must be a number in \(1.0, 1e\+30\] but is 0"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "one value but has 6.0 and"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"factor": 2}},
            "rope_scaling and rope_parameters must be equal but are",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1 but is 0.5"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor must be 1 but is 0.25",
        ),
    ],
)
def test_unsupported_options_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rope(ConfigReader(config), 64)
