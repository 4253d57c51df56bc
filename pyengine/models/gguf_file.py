"""GGUF model files: header, config and weights, each checked against the file before it is used.

The bytes are read by the `gguf` package; nothing here parses the format. What is added is the
checks that turn a truncated or corrupt file into one clear error.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGUFEndian, GGUFValueType
from gguf.gguf_reader import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from pyengine.errors import ModelFileError
from pyengine.models.gguf_tensors import TensorRule

# A reader makes one small object per value: bounds what a hostile header can cost in memory.
# The largest vocabularies (262,144 tokens with scores, types and merges) need about 2.5 million.
MAX_HEADER_VALUES = 8_000_000

# The package dequantises 16 rows at a time: so many rows become one, and its loop is shorter.
ROWS_AT_ONCE = 64

_T = TypeVar("_T", bool, int, float, str)


class _CheckedReader(GGUFReader):
    """The package's reader, but a read past the end of the file is an error, not an empty array.

    Lists are read at once: value by value, a vocabulary's took most of the time of a load.
    """

    def __init__(self, path: Path) -> None:
        self._flat: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._reads = 0
        super().__init__(path)

    def _get(
        self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
    ) -> np.ndarray[Any, Any]:
        if self._flat is None:
            self._flat = self.data.view(np.ndarray)  # slices of a plain array are much cheaper
        self._count(1)
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        self._check_end(end)
        array: np.ndarray[Any, Any] = self._flat[int(offset) : end].view(dtype)
        ordered: np.ndarray[Any, Any] = array.view(
            array.dtype.newbyteorder(override_order or self.byte_order)
        )
        return ordered

    def _count(self, values: int) -> None:
        self._reads += values
        if self._reads > MAX_HEADER_VALUES:
            raise ValueError(f"its header holds more than {MAX_HEADER_VALUES} values")

    def _check_end(self, end: int) -> None:
        if end > self.data.size:
            raise ValueError(f"it is cut off: byte {end} is needed, the file has {self.data.size}")

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray[Any, Any]], list[int], list[Any]]:
        """(bytes, parts, which of them are the value, its types)."""
        if int(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count, begin = GGUFValueType(int(head[0][0])), int(head[1][0]), orig_offs + 12
        number = self.gguf_scalar_to_np.get(kind)
        if count == 0 or (number is None and kind is not GGUFValueType.STRING):
            return super()._get_field_parts(orig_offs, raw_type)
        if number is None:
            size, values = self._texts(begin, count)
        else:
            values = [self._get(begin, number, count)]
            self._count(count - 1)
            size = values[0].nbytes
        places = list(range(2, 2 + len(values)))
        return 12 + size, [*head, *values], places, [GGUFValueType.ARRAY, kind]

    def _texts(self, begin: int, count: int) -> tuple[int, list[np.ndarray[Any, Any]]]:
        """(bytes, the bytes of each text): a length of eight bytes comes before each."""
        assert self._flat is not None
        swapped = {"little": "big", "big": "little"}[sys.byteorder]
        order: Any = swapped if self.byte_order == "S" else sys.byteorder
        lengths, texts, end = self._flat.data, [], begin
        for _ in range(count):
            self._count(2)
            start = end + 8
            self._check_end(start)
            end = start + int.from_bytes(lengths[end:start], order)
            self._check_end(end)
            texts.append(self._flat[start:end])
        return end - begin, texts


class GGUFFile:
    """One opened and checked GGUF file: typed metadata and raw tensors.

    Raises: ModelFileError for anything that is not a whole, readable GGUF file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.errstate(all="ignore"):  # overflowing sizes are caught by the checks below
                self._reader = _CheckedReader(self.path)
        except OSError as error:
            raise self.refuse(f"file must be readable but: {error.strerror or error}") from error
        except (ValueError, KeyError, IndexError, TypeError, ArithmeticError) as error:
            raise self.refuse(f"file must be a whole GGUF file but {_reason(error)}") from error
        except (RecursionError, MemoryError) as error:
            raise self.refuse("header must be a flat list of values but is too deep") from error
        if self._reader.endianess is not GGUFEndian.LITTLE:
            raise self.refuse("byte order must be little-endian but is big-endian")
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._check_tensors()

    def refuse(self, rule: str) -> ModelFileError:
        """The error for a broken rule, to be raised by the caller."""
        return ModelFileError(f"[gguf] {self.path.name}: {rule}")

    @property
    def keys(self) -> list[str]:
        """All metadata keys."""
        return [key for key in self._reader.fields if not key.startswith("GGUF.")]

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T | None:
        """The value of `key`, or `default` where absent.

        Raises: ModelFileError where the value is of another type.
        """
        value = self._contents(key)
        if value is None:
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.refuse(f"{key} must be of type {kind.__name__} but is {_short(value)}")
        return value

    def need(self, key: str, kind: type[_T]) -> _T:
        """The value of `key`, which must be there."""
        value = self.get(key, kind)
        if value is None:
            raise self.refuse(f"metadata must have {key} but it is missing")
        return value

    def get_list(self, key: str, kind: type[_T]) -> list[_T] | None:
        """The list under `key`, each value of type `kind`; None where absent."""
        values = self._contents(key)
        if values is None:
            return None
        if type(values) is not list or any(type(value) is not kind for value in values):
            raise self.refuse(f"{key} must be a list of {kind.__name__} but is {_short(values)}")
        return values

    def raw(self, key: str) -> Any:
        """The value of `key` as the file holds it; None where absent."""
        return self._contents(key)

    def _contents(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            return None
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise self.refuse(f"{key} must be UTF-8 but {_reason(error)}") from error

    def _check_tensors(self) -> None:
        """Every tensor's dtype, size and place, with Python's unbounded integers."""
        start, size = int(self._reader.data_offset), self._reader.data.size
        checked: set[Any] = set()
        for tensor in self._reader.tensors:
            where = f"tensor {tensor.name}"
            kind = tensor.tensor_type
            if kind not in checked:
                self._check_dtype(tensor)
                checked.add(kind)
            elements = 1
            for length in tensor.shape.tolist():
                elements *= length
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if elements == 0 or tensor.shape.tolist()[0] % block:
                raise self.refuse(
                    f"{where} must have whole rows of {kind.name} blocks ({block} values) "
                    f"but has shape {_shape(tensor)}"
                )
            begin, length = int(tensor.data_offset), elements // block * block_bytes
            if begin < start or begin + length > size or begin % int(self._reader.alignment):
                raise self.refuse(
                    f"{where} must lie in bytes [{start}, {size}) on a multiple of "
                    f"{int(self._reader.alignment)} but takes [{begin}, {begin + length})"
                )

    def _check_dtype(self, tensor: ReaderTensor) -> None:
        _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
        try:
            dequantize(np.zeros((1, block_bytes), dtype=np.uint8), tensor.tensor_type)
        except NotImplementedError:
            raise self.refuse(
                f"tensor {tensor.name} must be of a type that can be dequantised "
                f"but is {tensor.tensor_type.name}"
            ) from None

    def check_shape(self, rule: TensorRule) -> None:
        """Raises ModelFileError unless the file has the rule's tensor in the rule's shape."""
        tensor = self.tensors.get(rule.name)
        if tensor is None:
            raise self.refuse(f"file must have tensor {rule.name} but it is missing")
        expected = rule.shape[::-1] if rule.transposed else rule.shape
        if _shape(tensor) != expected:
            raise self.refuse(
                f"tensor {rule.name} must have shape {expected} but has {_shape(tensor)}"
            )

    def load(self, rule: TensorRule) -> torch.Tensor:
        """One tensor, dequantised to float32, in Hugging Face's layout."""
        tensor = self.tensors[rule.name]
        rows = math.gcd(ROWS_AT_ONCE, math.prod(tensor.data.shape[:-1]))
        data = tensor.data.reshape(-1, rows * tensor.data.shape[-1])
        weights = dequantize(data, tensor.tensor_type)
        weights = weights.reshape(tensor.shape.tolist()[::-1])
        if rule.rotary_heads:
            halves = weights.reshape(rule.rotary_heads, -1, 2, *weights.shape[1:])
            weights = halves.swapaxes(1, 2).reshape(weights.shape)
        if rule.transposed:
            weights = weights.T
        if not np.isfinite(weights).all():
            raise self.refuse(f"tensor {rule.name} must be finite but holds NaN or infinity")
        return torch.from_numpy(np.array(weights, dtype=np.float32, order="C"))


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(reversed(tensor.shape.tolist()))


def _reason(error: BaseException) -> str:
    return _short(str(error).strip("'\"") or type(error).__name__)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
