"""GGUF files that are refused: options that are not supported, wrong tensors, corrupt bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import tiny, write

from pyengine.errors import ConfigError, ModelFileError, PyengineError
from pyengine.models.gguf import read_gguf
from pyengine.models.gguf_file import GGUFFile

# ---------------------------------------------------------------- what is refused


def uint(key: str, value: int) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_uint32(key, value)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        (uint("llama.expert_count", 8), ConfigError, r"llama.expert_count must be 0 but is 8"),
        (
            uint("llama.attention.sliding_window", 16),
            ConfigError,
            r"llama.attention.sliding_window must be absent but is 16",
        ),
        (uint("llama.new_trick", 3), ConfigError, r"llama.new_trick is an option .* value is 3"),
        (
            uint("llama.rope.dimension_count", 4),
            ConfigError,
            r"llama.rope.dimension_count must be the head size 8 but is 4",
        ),
        (
            lambda w: w.add_string("llama.rope.scaling.type", "longrope"),
            ConfigError,
            r"llama.rope.scaling.type must be none, linear or yarn but is 'longrope'",
        ),
        (
            lambda w: w.add_float32("llama.logit_scale", 0.5),
            ConfigError,
            r"llama.logit_scale must be 1.0 but is 0.5",
        ),
        (uint("split.count", 2), ConfigError, r"split.count must be 1 .* but is 2"),
        (
            uint("llama.vocab_size", 62),
            ConfigError,
            r"llama.vocab_size must be token_embd.weight's rows \(61\) but is 62",
        ),
        (
            lambda w: w.add_string("llama.vocab_size", "many"),
            ModelFileError,
            r"llama.vocab_size must be of type int but is many",
        ),
        (
            uint("tokenizer.ggml.eot_token_id", 61),
            ModelFileError,
            r"special token ids must be in \[0, 61\) but one is 61",
        ),
        (
            lambda w: w.add_tensor("blk.0.surprise.weight", np.ones(4, dtype=np.float32)),
            ModelFileError,
            r"every tensor must belong to the model but blk.0.surprise.weight does not",
        ),
        (
            lambda w: w.add_tensor("counts", np.ones(4, dtype=np.int32)),
            ModelFileError,
            r"tensor counts must be of a type that can be dequantised but is I32",
        ),
    ],
)
def test_options_that_are_not_supported_are_named(
    tmp_path: Path, metadata: Any, error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", metadata)
    with pytest.raises(error, match=message):
        read_gguf(path)


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "falcon")
    with pytest.raises(ConfigError, match=r"general.architecture must be one of .*'falcon'"):
        read_gguf(path)


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", without=("block_count",))
    with pytest.raises(ModelFileError, match=r"metadata must have llama.block_count"):
        read_gguf(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        change=lambda name, w: None if name == "blk.1.attn_v.weight" else w,
    )
    with pytest.raises(ModelFileError, match=r"file must have tensor blk.1.attn_v.weight"):
        read_gguf(path)


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        change=lambda name, w: w[:-1] if name == "blk.0.attn_q.weight" else w,
    )
    message = r"blk.0.attn_q.weight must have shape \(32, 32\) but has \(31, 32\)"
    with pytest.raises(ModelFileError, match=message):
        read_gguf(path)


def test_too_many_layers_are_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        uint("llama.block_count", 3_000_000),
        without=("block_count",),
    )
    with pytest.raises(ConfigError, match=r"llama.block_count must be in"):
        read_gguf(path)


def test_nan_weight_is_refused(tmp_path: Path) -> None:
    def spoil(name: str, weights: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_down.weight":
            weights[3, 4] = np.nan
        return weights

    model = read_gguf(write(tmp_path / "m.gguf", tiny("llama"), "llama", change=spoil))
    with pytest.raises(ModelFileError, match=r"tensor blk.1.ffn_down.weight must be finite"):
        list(model.tensors())


# ---------------------------------------------------------------- corrupt files


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello, this is text" * 10])
def test_no_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m.gguf: file must be a whole GGUF file but"):
        read_gguf(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none.gguf: file must be readable but: No such file"):
        read_gguf(tmp_path / "none.gguf")


def test_big_endian_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"byte order must be little-endian"):
        read_gguf(tmp_path / "m.gguf")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", tiny("llama"), "llama").read_bytes()
    cut = tmp_path / "cut.gguf"
    end = len(whole) - 128  # the last tensor's padding may be missing
    lengths = [*range(1, 900, 7), *range(900, end, 4001), end]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"^\[gguf\] cut.gguf: "):
            list(read_gguf(cut).tensors())
    assert len(lengths) > 130


def test_corrupt_headers_load_or_raise_a_typed_error(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama", num_hidden_layers=1), "llama")
    whole = path.read_bytes()
    header = int(GGUFFile(path)._reader.data_offset)
    rng, refused = random.Random(0), 0
    for _ in range(600):
        spoiled = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(4, header)
            spoiled[at] = rng.choice((0, 0x7F, 0x80, 0xFF, spoiled[at] ^ (1 << rng.randrange(8))))
        path.write_bytes(spoiled)
        try:
            list(read_gguf(path).tensors())
        except PyengineError:
            refused += 1
    assert refused > 400


def test_huge_array_length_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("list", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    content = path.read_bytes()
    at = content.index(b"list") + 4 + 4 + 4
    path.write_bytes(content[:at] + (2**60).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(ModelFileError, match=r"it is cut off: byte"):
        read_gguf(path)


def test_tensor_outside_the_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    content = bytearray(path.read_bytes())
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    content[at : at + 8] = (2**64 - 32).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m.gguf: .*(output_norm.weight|cut off)"):
        read_gguf(path)


def test_values_of_the_header_are_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    monkeypatch.setattr("pyengine.models.gguf_file.MAX_HEADER_VALUES", 20)
    with pytest.raises(ModelFileError, match=r"its header holds more than 20 values"):
        read_gguf(path)


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    copy = shutil.copy(path, tmp_path / "copy.gguf")
    for _, tensor in read_gguf(path).tensors():
        tensor.zero_()  # ours to write, not a view of the file
    assert path.read_bytes() == Path(copy).read_bytes()
