"""linear_pack of matrices that lie in files: the words that the same matrices in memory become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyengine.errors import ModelFileError
from pyengine.ops import linear_pack
from pyengine.ops.linear import Kind, StoredRows

BEFORE = b"odd"  # where a matrix begins need be no multiple of anything


class Stored:
    """Matrices, one behind the other in a file that stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w+b", buffering=0)

    def add(self, matrix: Tensor) -> StoredRows:
        at = self.file.seek(0, 2) + self.file.write(BEFORE)
        self.file.write(matrix.contiguous().view(torch.uint8).numpy().tobytes())
        shape = matrix.shape[0], matrix.shape[1]
        return StoredRows(self.path, self.file.fileno(), at, matrix.dtype, shape)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path / "matrices")
    yield made
    made.file.close()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("sizes", "K"), [((1,), 1), ((48, 16), 64), ((31, 33, 70), 131)])
def test_the_words_of_matrices_in_memory(
    sizes: tuple[int, ...], K: int, dtype: torch.dtype, kind: Kind, isa: str, stored: Stored
) -> None:
    rng = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, K, generator=rng).to(dtype) for n in sizes]
    pair = [matrices[0], matrices[0] + 1]
    for parts, gated in ((matrices, False), (pair, True)):
        expected = linear_pack(parts, kind, gated)
        found = linear_pack([stored.add(m) for m in parts], kind, gated)
        assert torch.equal(found.data, expected.data)
        if expected.scale is not None:
            assert found.scale is not None
            assert torch.equal(found.scale, expected.scale)


def test_a_matrix_that_is_not_all_there(stored: Stored) -> None:
    place = stored.add(torch.ones(40, 8))
    stored.file.truncate(place.at + 39 * 32)
    with pytest.raises(ModelFileError, match=r"matrices\] must stay readable .*become shorter"):
        linear_pack([place], "float32")


def test_a_file_that_cannot_be_read(stored: Stored) -> None:
    place = stored.add(torch.ones(40, 8))
    with stored.path.open("ab") as written:  # open for writing alone
        blind = StoredRows(stored.path, written.fileno(), place.at, place.dtype, place.shape)
        with pytest.raises(ModelFileError, match="Bad file descriptor"):
            linear_pack([blind], "float32")


def test_shapes_are_checked_before_anything_is_read(stored: Stored) -> None:
    place = stored.add(torch.ones(40, 8))
    with pytest.raises(ValueError, match="equal K"):
        linear_pack([place, torch.ones(3, 9)], "float32")
