"""What an adapter adds, where it stands, and which settings there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import save_hf

from pyengine.errors import ConfigError
from pyengine.models.loader import load_model
from pyengine.models.lora import Lora, LoraConfig, adaptable, adapter_sizes
from pyengine.models.module_pattern import RULE


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    save_hf("llama", tmp_path)
    return load_model(tmp_path).decoder


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("r", 0, "an integer >= 1"),
        ("r", 2.0, "an integer >= 1"),
        ("r", True, "an integer >= 1"),
        ("alpha", 0, "finite and > 0"),
        ("alpha", float("inf"), "finite and > 0"),
        ("alpha", "32", "finite and > 0"),
        ("targets", "q_proj", "'all-linear' or module names"),
        ("targets", (), "'all-linear' or module names"),
        ("targets", ("q_proj", 3), "'all-linear' or module names"),
        ("targets", (".*_proj",), "'all-linear' or module names"),
        ("use_rslora", 1, "a bool"),
        ("seed", 2**63, "an integer of 64 bits"),
        ("rank_pattern", {"q_proj": 0}, f"a dict of integers >= 1 by {RULE}"),
        ("alpha_pattern", {"q_(*": 1}, f"a dict of numbers > 0 by {RULE}"),
    ],
)
def test_settings_are_checked(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**{field: value})
    assert str(caught.value) == f"[LoraConfig] {field} must be {rule} but is {value!r}"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm_head", "targets must be matrices of the layers but 'lm_head' is not: the head and "
                    "tables of embeddings have no adapters"),
        ("c_attn", "targets must be among down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, "
                   "v_proj of llama but holds 'c_attn'"),
        ("proj", "targets must be among down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, "
                 "v_proj of llama but holds 'proj'"),
    ],
)  # fmt: skip
def test_targets_must_be_matrices_of_the_layers(llama: Any, target: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Lora(llama, LoraConfig(targets=[target]))
    assert str(caught.value) == f"[LoraConfig] {message}"


def test_targets_are_whole_names_or_their_ends(llama: Any) -> None:
    def modules(*targets: str) -> list[str]:
        return list(Lora(llama, LoraConfig(targets=targets)).adapters)

    layer = "model.layers.{}.self_attn.q_proj"
    assert modules("q_proj") == [layer.format(0), layer.format(1)]
    assert modules("self_attn.q_proj") == modules("q_proj")
    assert modules(layer.format(1)) == [layer.format(1)]
    assert len(Lora(llama, LoraConfig()).adapters) == 14 == len(adaptable(llama.spec))


def test_gpt2_has_one_adapter_on_its_fused_projection(tmp_path: Path) -> None:
    save_hf("gpt2", tmp_path)
    decoder = load_model(tmp_path).decoder
    lora = Lora(decoder, LoraConfig(r=2, targets=["c_attn", "c_proj"]))
    adapter = lora.adapters["transformer.h.0.attn.c_attn"]
    assert adapter.parts == ("layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v")
    assert (adapter.A.shape, adapter.B.shape) == ((2, 48), (144, 2))
    assert len(lora.adapters) == 6  # c_proj is attention's and the MLP's


def test_scales_and_ranks() -> None:
    """16 / 4 = 4; rslora 16 / sqrt(4) = 8; v's own: 9 / 9 = 1, the scale of its own rank."""
    patterns = {"rank_pattern": {"v_proj": 9}, "alpha_pattern": {"layers.1.self_attn.v_proj": 18}}
    config = LoraConfig(r=4, alpha=16, **patterns)
    q, v = "model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"
    assert (config.rank(q.format(0)), config.rank(v.format(0))) == (4, 9)
    assert config.scale(q.format(1)) == 4
    assert config.scale(v.format(0)) == 16 / 9
    assert config.scale(v.format(1)) == 2
    assert LoraConfig(r=4, alpha=16, use_rslora=True).scale(q.format(0)) == 8
    # "proj" is no part of a name.
    assert LoraConfig(rank_pattern={"proj": 2}).rank(q.format(0)) == 16


def test_new_adapters_add_nothing_and_begin_as_pefts(llama: Any) -> None:
    lora = Lora(llama, LoraConfig(r=8))
    for name, p in lora.parameters.items():
        if name.endswith("lora_B.weight"):
            assert not p.any()
        else:  # uniform in +-1 / sqrt(K): standard deviation 1 / sqrt(3 K)
            bound = p.shape[1] ** -0.5
            assert p.abs().max() <= bound
            assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    merged = lora.merged(llama)
    for name, p in llama.named_parameters():
        assert torch.equal(merged.get_parameter(name), p)
    same, other = Lora(llama, LoraConfig(r=8)), Lora(llama, LoraConfig(r=8, seed=1))
    for name, p in lora.parameters.items():
        assert torch.equal(same.parameters[name], p)
        assert torch.equal(other.parameters[name], p) == name.endswith("lora_B.weight")


def test_what_is_merged(tmp_path: Path) -> None:
    """W + scale * B A in float64; what has no adapter is the same tensor."""
    save_hf("gpt2", tmp_path)
    decoder = load_model(tmp_path).decoder
    lora = Lora(decoder, LoraConfig(r=5, alpha=7, targets=["c_attn"]))
    with torch.no_grad():
        for p in lora.parameters.values():
            p.normal_()
    merged = lora.merged(decoder)
    for i in range(2):
        adapter = lora.adapters[f"transformer.h.{i}.attn.c_attn"]
        delta = 7 / 5 * (adapter.B.double() @ adapter.A.double())
        for part, rows in zip("qkv", delta.split(48), strict=True):
            name = f"layers.{i}.attn.{part}.weight"
            expected = decoder.get_parameter(name).double() + rows
            torch.testing.assert_close(
                merged.get_parameter(name).double(), expected, rtol=0, atol=2e-5
            )
    assert merged.embed.weight.data_ptr() == decoder.embed.weight.data_ptr()


def test_numbers_are_counted(llama: Any) -> None:
    config = LoraConfig(r=3, targets=["k_proj", "down_proj"])
    lora = Lora(llama, config)
    sizes = adapter_sizes(llama.spec, config)
    assert sizes == 2 * [(3, 24, 48), (3, 48, 80)]
    trained = sum(p.numel() for p in lora.parameters.values())
    assert trained == sum(rank * (rows + columns) for rank, rows, columns in sizes)
