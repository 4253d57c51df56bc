"""What the tokenizer's tests share: a trained tokenizer's folder, and our reading of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tokenizer_files")  # so that its failures show both sides

from tokenizer_files import trained, write_folder  # noqa: E402

from pyengine.data.tokenizer import Tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer") / "m", trained())


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)
