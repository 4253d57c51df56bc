"""Frozen models whose matrices stay in their files: a copy's values, no memory between reads."""

from __future__ import annotations

import gc
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from models.tiny_models import CASES, save_hf

import pyengine as pe
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.errors import ModelFileError
from pyengine.models.decoder import Decoder
from pyengine.models.loader import load_model
from pyengine.models.mapped import MappedFiles, mapped_copy
from pyengine.models.source import resolve

FILE_DTYPES = [torch.float32, torch.bfloat16]
COMPUTE = [torch.float32, torch.bfloat16]
TRANSPOSED = {"gpt2"}  # files hold (in, out)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Decoder | None]:
    source = resolve(folder)
    decoder = load_model(source, dtype).decoder
    return decoder, mapped_copy(decoder, source)


def convert(folder: Path, dtype: torch.dtype) -> None:
    """The file's tensors become `dtype`."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(
        {n: t.to(dtype) for n, t in tensors.items()}, file, {"format": "pt"}
    )


@pytest.mark.parametrize("stored", FILE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", COMPUTE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_copys_values(case: str, dtype: torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    save_hf(case, tmp_path)
    convert(tmp_path, stored)
    decoder, mapped = loaded(tmp_path, dtype)
    if case.split("-")[0] in TRANSPOSED:
        assert mapped is None
        return
    assert mapped is not None
    copy = dict(decoder.frozen_copy().named_parameters())
    found = dict(mapped.named_parameters())
    assert found.keys() == copy.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter.to(copy[name].dtype), copy[name]), name
        assert not parameter.requires_grad
        if parameter.ndim == 2:
            assert parameter.dtype == stored


def test_shards_and_names_without_their_prefix(tmp_path: Path) -> None:
    model = save_hf("llama", tmp_path)
    shutil.rmtree(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    decoder, mapped = loaded(tmp_path)
    assert mapped is not None
    for name, parameter in mapped.named_parameters():
        assert torch.equal(parameter, decoder.get_parameter(name)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_the_kernels_do_not_pack_is_copied(dtype: torch.dtype, tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    convert(tmp_path, dtype)
    assert loaded(tmp_path)[1] is None
    engine = pe.Engine.from_pretrained(tmp_path, dtype="float32")
    assert engine._reference.decoder is not None
    copied = sum(p.nbytes for p in engine._reference.decoder.parameters())
    assert dict(engine.memory_plan().parts)["reference"] == copied


def test_numbers_between_their_places_are_copied(tmp_path: Path) -> None:
    """A header of any length is valid, and then a float may begin at any byte."""
    save_hf("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" "
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert loaded(tmp_path)[1] is None
    engine = pe.Engine.from_pretrained(tmp_path, dtype="float32")
    group = pe.Group([5, 6], [pe.Response([7, 8])])
    assert engine.score([group], "reference")[0][0].logprob == engine.score([group])[0][0].logprob


def test_what_cannot_be_mapped_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("No such device")

    save_hf("llama", tmp_path)
    monkeypatch.setattr("pyengine.models.mapped.mmap.mmap", refuse)
    assert loaded(tmp_path)[1] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", FILE_DTYPES, ids=str)
def test_a_reference_in_its_files_has_the_policys_first_bits(
    dtype: str, stored: torch.dtype, tmp_path: Path
) -> None:
    save_hf("llama-tied", tmp_path)
    convert(tmp_path, stored)
    engine = pe.Engine.from_pretrained(tmp_path, dtype=dtype, learning_rate=1e-2)
    assert engine._reference.decoder is not None
    assert engine._reference.decoder.files is not None
    prompts = [[5, 6, 7], [8]]
    groups = engine.generate(prompts, pe.SamplingParams(n=2, max_tokens=9, seed=1))
    first = [s.token_logprobs for of_group in engine.score(groups) for s in of_group]
    pairs = pe.Preferences(groups, [pe.Comparison(i, 0, 1) for i in range(2)])
    for _ in range(3):
        engine.update(pairs, pe.objectives.DPO())
    again = [s.token_logprobs for of_group in engine.score(groups, "reference") for s in of_group]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    sampled = engine.generate(
        prompts, pe.SamplingParams(n=2, max_tokens=9, seed=1), models={"reference": 1.0}
    )
    for group, before in zip(sampled, groups, strict=True):
        assert [r.token_ids for r in group.responses] == [r.token_ids for r in before.responses]
    engine.save_checkpoint(tmp_path / "checkpoint")
    resumed = pe.Engine.load_checkpoint(tmp_path / "checkpoint")
    again = [s.token_logprobs for of_group in resumed.score(groups, "reference") for s in of_group]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_model_as_the_reference_stays_in_its_files(tmp_path: Path) -> None:
    save_hf("llama", tmp_path / "policy")
    save_hf("llama", tmp_path / "other")
    engine = pe.Engine.from_pretrained(
        tmp_path / "policy", dtype="float32", reference=tmp_path / "other"
    )
    assert engine._reference.decoder is not None
    assert engine._reference.decoder.files is not None
    own = [p.nbytes for p in engine._reference.decoder.parameters() if p.ndim != 2]
    assert dict(engine.memory_plan().parts)["reference"] == sum(own)


def test_a_file_that_was_written_to_is_refused(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    engine = pe.Engine.from_pretrained(tmp_path, dtype="float32")
    group = pe.Group([5, 6], [pe.Response([7, 8])])
    file = tmp_path / "model.safetensors"
    os.utime(file, ns=(0, 1))
    with pytest.raises(ModelFileError, match=re.escape(f"[{file}] must stay as it is")):
        engine.score([group], "reference")
    engine.score([group])  # the policy has its own


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    """An error, and no signal: nothing of a pass touches the file's mapping."""
    save_hf("llama", tmp_path)
    _, decoder = loaded(tmp_path)
    assert decoder is not None
    files = decoder.files
    assert files is not None
    packed = PackedDecoder(decoder, "float32")
    packed.refresh(keep=False)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    shorter = re.escape(f"[{file}]") + ".*become shorter"
    with pytest.raises(ModelFileError, match=shorter):
        [packed.matrix(key) for key in packed.table]
    os.truncate(file, 100)
    with pytest.raises(ModelFileError, match=shorter):
        files.rows(decoder.embed.weight, torch.tensor([1]))
    with pytest.raises(ModelFileError, match="was written to"):
        packed.refresh(keep=False)


def test_a_file_that_is_replaced_is_not_missed(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    engine = pe.Engine.from_pretrained(tmp_path, dtype="float32")
    group = pe.Group([5, 6], [pe.Response([7, 8])])
    before = engine.score([group])[0][0].logprob
    other = tmp_path / "other"
    other.write_bytes(bytes(100))
    other.replace(tmp_path / "model.safetensors")
    assert engine.score([group], "reference")[0][0].logprob == before


def mapped_bytes(file: Path) -> int:
    """Of the process's mappings of a file, what is in memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(file.resolve()))
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is in memory")
def test_it_is_in_memory_only_while_it_is_read(tmp_path: Path) -> None:
    save_hf("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    _, decoder = loaded(tmp_path)
    assert decoder is not None
    assert isinstance(decoder.files, MappedFiles)
    sums = [float(parameter.sum()) for parameter in decoder.parameters()]
    assert mapped_bytes(file) > 0
    decoder.files.let_go()
    assert mapped_bytes(file) == 0
    assert [float(parameter.sum()) for parameter in decoder.parameters()] == sums
    packed = PackedDecoder(decoder, "float32")
    packed.refresh(keep=False)
    for key in packed.table:
        packed.matrix(key)
        assert mapped_bytes(file) == 0
    ids = torch.tensor([3, 0, 3, 2])
    rows = decoder.files.rows(decoder.embed.weight, ids)
    assert mapped_bytes(file) == 0
    assert torch.equal(rows, decoder.embed.weight[ids])
    del decoder, packed
    gc.collect()
    assert str(file) not in Path("/proc/self/maps").read_text()
