"""Files written a tensor at a time, as safetensors reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from pyengine.engine.persist.tensor_stream import OpenTensors, read_header, write_stream
from pyengine.errors import CheckpointError
from pyengine.files import sha256_file

TENSORS = {
    "matrix": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    "turned": torch.arange(12.0).view(3, 4).T,
    "one": torch.tensor(2.5),
}
SHAPES = {name: tuple(t.shape) for name, t in TENSORS.items()}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    digest = write_stream(file, SHAPES, iter(TENSORS.values()), {"kind": "ü"})
    assert digest == sha256_file(file)
    loaded = safetensors.torch.load_file(file)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert read_header(file) == ({"kind": "ü"}, SHAPES)
    tensors = OpenTensors(file)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    with pytest.raises(CheckpointError, match=r"other cannot be read: "):
        tensors["other"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_stream(file, {"a": (2,)}, [torch.ones(2)], {})
    before = file.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        write_stream(file, {"a": (2,)}, [torch.tensor([1, torch.inf])], {})
    assert str(caught.value) == f"[{file}] a must be finite but is not"
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, None])
def test_files_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    for read in (read_header, OpenTensors):
        with pytest.raises(CheckpointError, match=r"x\.safetensors\] cannot be read: "):
            read(file)
