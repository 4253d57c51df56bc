"""Folders in and out: bit-equal round trips through transformers, and every refusal."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CASES, hf_model, our_logprobs, save_hf, their_logprobs, token_ids
from torch import Tensor

from pyengine.errors import CheckpointError, ConfigError, ModelFileError, PyengineError
from pyengine.models.hf_folder import read_json
from pyengine.models.loader import (
    build_decoder,
    check_save_folder,
    hf_tensors,
    load_model,
    write_model,
)

Tensors = dict[str, Tensor]


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **options: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


SHARDED = [("llama", 30_000), ("qwen3-bias-tied", 30_000), ("gpt2-untied", 30_000)]


@pytest.mark.parametrize(
    ("case", "max_shard_bytes"), [(case, 5_000_000_000) for case in CASES] + SHARDED
)
def test_round_trip_is_exact(case: str, max_shard_bytes: int, tmp_path: Path) -> None:
    original = save_hf(case, tmp_path / "a")
    loaded = load_model(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_model(
        tmp_path / "b", loaded.decoder, loaded.config, loaded.generation_config, max_shard_bytes
    )
    assert (tmp_path / "b" / "model.safetensors").exists() == (max_shard_bytes > 30_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert type(again) is type(original)
    with torch.no_grad():
        ids = token_ids()[None]
        assert torch.equal(again(ids).logits, original(ids).logits)
    ours = load_model(tmp_path / "b").decoder
    for (name, p), (_, q) in zip(
        ours.named_parameters(), loaded.decoder.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def test_files_written(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    loaded = load_model(tmp_path)
    config = loaded.config | {"torch_dtype": "float16", "quantization_config": {"bits": 4}}
    del config["architectures"]
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", loaded.decoder, config, {"eos_token_id": [2, 5]})
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "float32"
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert not {"torch_dtype", "quantization_config"} & written.keys()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "eos_token_id": [2, 5]
    }


def test_generation_config_is_read_and_may_be_absent(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    assert load_model(tmp_path).generation_config["eos_token_id"] == 2
    (tmp_path / "generation_config.json").unlink()
    assert load_model(tmp_path).generation_config == {}


@pytest.mark.parametrize("case", ["llama", "gpt2-untied"])
def test_sharded_files_of_transformers_load(case: str, tmp_path: Path) -> None:
    model = save_hf(case, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        ours = our_logprobs(load_model(tmp_path).decoder, token_ids())
        assert (ours - their_logprobs(model, token_ids())).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_become_float32_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    edit_tensors(tmp_path, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    ours = load_model(tmp_path).decoder.final_norm.weight
    assert ours.dtype == torch.float32
    assert torch.equal(ours.detach(), stored.float())


@pytest.mark.parametrize("case", ["gpt2", "gpt2-untied", "llama-tied"])
def test_base_model_names_without_prefix_load(case: str, tmp_path: Path) -> None:
    save_hf(case, tmp_path)
    want = our_logprobs(load_model(tmp_path).decoder, token_ids())

    def strip(tensors: Tensors) -> Tensors:
        return {
            name.removeprefix("transformer.").removeprefix("model."): tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(tmp_path, strip)
    assert torch.equal(our_logprobs(load_model(tmp_path).decoder, token_ids()), want)


def test_tensors_that_hold_nothing_learned_are_skipped(tmp_path: Path) -> None:
    save_hf("gpt2", tmp_path / "gpt2")
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).bool()}
    edit_tensors(tmp_path / "gpt2", lambda t: t | mask | {"h.1.attn.masked_bias": torch.ones(())})
    save_hf("llama-tied", tmp_path / "llama")
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    edit_tensors(
        tmp_path / "llama",
        lambda t: t | inv_freq | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
    )
    for name in ("gpt2", "llama"):
        assert load_model(tmp_path / name).spec.family == name


def test_parameters_own_their_memory(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    decoder = load_model(tmp_path).decoder
    before = our_logprobs(decoder, token_ids())
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    assert torch.equal(our_logprobs(decoder, token_ids()), before)


def test_build_decoder_takes_tensors_in_any_order() -> None:
    model = hf_model("gpt2")
    tensors = list(model.transformer.state_dict().items())
    one = build_decoder(model.config.to_dict(), tensors, "x")
    other = build_decoder(model.config.to_dict(), reversed(tensors), "x")
    assert torch.equal(our_logprobs(one, token_ids()), our_logprobs(other, token_ids()))


def test_a_lying_config_allocates_nothing() -> None:
    config = hf_model("llama").config.to_dict()
    huge = config | {"hidden_size": 2**28, "intermediate_size": 2**28}
    with pytest.raises(ModelFileError, match=r"must have shape \(97, 268435456\) but has \(97, 48"):
        build_decoder(huge, [("model.embed_tokens.weight", torch.ones(97, 48))], "x")


def test_hf_tensors_skips_absent_tensors_and_refuses_halves() -> None:
    model = hf_model("gpt2")
    decoder = build_decoder(model.config.to_dict(), model.transformer.state_dict().items(), "x")
    named = {name: p.detach() for name, p in decoder.named_parameters() if "attn.q" not in name}
    with pytest.raises(ConfigError, match=r"c_attn.weight must have all parts but .*q.weight is"):
        dict(hf_tensors(decoder.spec, named))
    only = {"final_norm.bias": decoder.final_norm.bias.detach()}
    assert list(dict(hf_tensors(decoder.spec, only))) == ["transformer.ln_f.bias"]


# ---------------------------------------------------------------- refusals


def rename(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new if k == old else k: v for k, v in tensors.items()}


def with_nan(tensors: Tensors) -> None:
    tensors["model.norm.weight"][3] = float("nan")


def with_infinity(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][3, 1] = -float("inf")


def without_layer(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if "layers.1" not in k}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layer, r"\[.*\] must hold every tensor but model.layers.1.* and 8 more is miss"),
        (rename("model.norm.weight", "model.norm.scale"), "but model.norm.scale does not"),
        (lambda t: t | {"extra": torch.ones(1)}, "must belong to llama but extra does not"),
        (
            lambda t: t | {"norm.weight": torch.ones(48)},
            "tensor model.norm.weight must be there once but is there twice",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.ones(47)},
            r"model.safetensors\] tensor model.norm.weight must have shape \(48,\) but has \(47,\)",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.ones(48, dtype=torch.int64)},
            "tensor model.norm.weight must be one of .* but is I64",
        ),
        (with_nan, "tensor model.norm.weight must be finite but holds NaN or infinity"),
        (with_infinity, "tensor model.embed_tokens.weight must be finite but holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[Tensors], Tensors | None], message: str, tmp_path: Path
) -> None:
    save_hf("llama", tmp_path)
    edit_tensors(tmp_path, change)
    with pytest.raises(ModelFileError, match=message):
        load_model(tmp_path)


def test_a_head_that_differs_from_the_tied_table_is_refused(tmp_path: Path) -> None:
    save_hf("llama-tied", tmp_path)
    edit_tensors(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ModelFileError, match=r"lm_head.weight must equal the embedding table"):
        load_model(tmp_path)


def test_build_decoder_refuses_integer_tensors() -> None:
    config = hf_model("llama").config.to_dict()
    tensors = [("model.norm.weight", torch.ones(48, dtype=torch.int8))]
    with pytest.raises(ModelFileError, match=r"model.norm.weight must be one of .* torch.int8"):
        build_decoder(config, tensors, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config.json\] must be valid UTF-8 JSON but"),
        (b"\xff{}", r"config.json\] must be valid UTF-8 JSON but"),
        (b"[" * 100_000, r"config.json\] must be valid UTF-8 JSON but"),
        (b'{"rope_theta": NaN}', "holds NaN, which JSON has no word for"),
        (b"[1]", r"config.json\] must be a JSON object but is a list"),
    ],
)
def test_a_bad_config_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        load_model(tmp_path)


def test_an_unsupported_option_names_the_file(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    edit_config(tmp_path, logit_scale=2)
    with pytest.raises(ConfigError, match=r"config.json\] .* logit_scale = 2 is not"):
        load_model(tmp_path)


def test_a_missing_file_is_refused_unless_optional(tmp_path: Path) -> None:
    assert read_json(tmp_path, "generation_config.json", required=False) == {}
    with pytest.raises(ModelFileError, match=r"must hold config.json but does not"):
        read_json(tmp_path, "config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_with_a_hint(name: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(ModelFileError, match=rf"only {name}: a pickle can run code"):
        load_model(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"must hold model.safetensors or .* but does not$"):
        load_model(tmp_path)


@pytest.mark.parametrize("size", [0, 7, 100, 20_000])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=r"model.safetensors\] must be a safetensors file but"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "model.bin", "", 7],
)
def test_shard_names_must_be_plain(name: Any, tmp_path: Path) -> None:
    save_hf("llama", tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"file of model.norm.weight must be a plain name"):
        load_model(tmp_path)


def change_index(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    save_hf("llama", folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(weight_map={}), "weight_map must be a non-empty object but is {}"),
        (lambda c: c.pop("weight_map"), "weight_map must be a non-empty object but is None"),
        (
            lambda c: c["weight_map"].update(extra="none.safetensors"),
            "file of extra must exist but none.safetensors does not",
        ),
        (
            lambda c: c["weight_map"].update(extra=c["weight_map"]["model.norm.weight"]),
            "tensor extra must be in model-.* but is not",
        ),
        (
            lambda c: c["weight_map"].pop("model.norm.weight"),
            "weight_map must list every tensor but model.norm.weight in model-.* is not in it",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    change_index(change, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        load_model(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_hf("llama", tmp_path, max_shard_size="20KB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    save_file(load_file(last) | load_file(first), last)
    with pytest.raises(ModelFileError, match=r"must be in one file but is also in model-00001"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_must_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    save_hf("llama", tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / name)
    (tmp_path / "model" / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelFileError, match="must lie inside its folder but leads to"):
        load_model(tmp_path / "model")


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    save_hf("llama", snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert load_model(snapshot).spec.vocab_size == 97


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2**63,
    10**400,
    0.5,
    1e308,
    "",
    "yarn",
    [],
    [1],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("case", ["llama-yarn", "llama-llama3", "qwen2-window", "gpt2"])
def test_any_option_of_any_value_loads_or_is_a_typed_error(case: str) -> None:
    config = hf_model(case).config.to_dict()
    nested = config.get("rope_parameters", {})
    outcomes = set()
    for value in JUNK:
        changed = [config | {key: value} for key in config]
        changed += [config | {"rope_parameters": nested | {key: value}} for key in nested]
        for variant in changed:
            try:
                build_decoder(variant, [], "x")
            except PyengineError as error:
                outcomes.add(type(error))
    assert outcomes == {ConfigError, ModelFileError}


def test_any_corrupt_header_byte_loads_or_is_a_typed_error(tmp_path: Path) -> None:
    save_hf("gpt2", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw, refused = random.Random(0), 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            broken[draw.randrange(header)] = draw.choice([0, 34, 44, 48, 57, 93, 125, 255])
        path.write_bytes(broken)
        try:
            load_model(tmp_path)
        except ModelFileError as error:
            refused += "model.safetensors" in str(error) or str(tmp_path) in str(error)
    assert refused > 250


def test_non_finite_weights_are_never_written(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        loaded.decoder.layers[1].mlp.up.weight[2, 3] = float("nan")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight is not"):
        write_model(tmp_path / "out", loaded.decoder, loaded.config, {})
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_disk_that_refuses_is_a_checkpoint_error(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    loaded = load_model(tmp_path)
    (tmp_path / "out" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"model.safetensors must be writable but"):
        write_model(tmp_path / "out", loaded.decoder, loaded.config, {})


def test_check_save_folder(tmp_path: Path) -> None:
    check_save_folder(tmp_path / "new")
    check_save_folder(tmp_path)
    save_hf("llama", tmp_path)
    check_save_folder(tmp_path)
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(ConfigError, match=r"empty or a saved model but holds thesis.docx"):
        check_save_folder(tmp_path)
    check_save_folder(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="must be a folder but is a file"):
        check_save_folder(tmp_path / "thesis.docx", overwrite=True)
