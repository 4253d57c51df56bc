"""Decoders with a head of a few outputs on the last token: the `...ForSequenceClassification`
folders of transformers, in and out.

Such a model has no head over the vocabulary. Its decoder is read as one of a tied head, which owns
no further tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyengine.errors import ConfigError, ModelFileError
from pyengine.models.decoder import Decoder
from pyengine.models.families import family_of
from pyengine.models.gguf import read_gguf
from pyengine.models.hf_folder import read_headers, read_json, read_tensors
from pyengine.models.loader import build_decoder, checked_headers
from pyengine.models.source import ModelSource, resolve
from pyengine.models.writer import is_finite, write_model

SCORE = "score.weight"
_LM_HEAD = "lm_head.weight"
_OURS = "pyengine_head"  # how our own folders say what the rows of the head are
_SUFFIX = "ForSequenceClassification"


@dataclass
class LoadedClassifier:
    """A decoder without a head over the vocabulary, fp32 masters on the CPU.

    config  as in the file, so that it can be written again
    score   (E, D) float32, the head; None of a causal language model, which has none
    heads   (outputs, ensemble) that the folder names; None where it names none
    reading what the folder says that a head's outputs mean; None where it says nothing
    """

    decoder: Decoder
    config: dict[str, Any]
    score: Tensor | None
    heads: tuple[int, int] | None
    source: str
    reading: str | None = None


def load_classifier(
    path: str | Path | ModelSource, dtype: torch.dtype = torch.float32
) -> LoadedClassifier:
    """Loads a causal language model or a `...ForSequenceClassification` folder.

    Raises: as load_model; ModelFileError for a head that does not fit the model or its config,
    ConfigError for a family that transformers has no such class of.
    """
    source = resolve(path)
    if source.kind == "gguf":
        gguf = read_gguf(source.path)
        _check_family(gguf.config, source.path)
        tensors = ((n, t) for n, t in gguf.tensors() if n != _LM_HEAD)
        decoder = build_decoder(headless(gguf.config), tensors, str(source.path), dtype)
        return LoadedClassifier(decoder, gguf.config, None, None, source.name)
    config = read_json(source.path, "config.json")
    _check_family(config, source.path)
    headers = read_headers(source.path)
    stored = checked_headers(source.path, headless(config), frozenset({SCORE, _LM_HEAD}))
    decoder = build_decoder(headless(config), read_tensors(stored), str(source.path), dtype)
    score = None
    if SCORE in headers:
        score = next(tensor for _, tensor in read_tensors([headers[SCORE]])).float()
        _check_score(score, decoder, config, source.path)
        config["architectures"] = [_architecture(config)]  # by the head, whatever the file says
    heads = None if score is None else _heads(config, len(score), source.path)
    reading = None if heads is None else config[_OURS].get("reading")
    return LoadedClassifier(decoder, config, score, heads, source.name, reading)


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a loaded classifier's config is that of a folder with a head."""
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith(_SUFFIX)


def _architecture(config: Mapping[str, Any]) -> str:
    stem = family_of(config).architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return stem + _SUFFIX


def headless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the decoder alone."""
    return dict(config) | {"tie_word_embeddings": True}


def _check_family(config: Mapping[str, Any], path: Path) -> None:
    family = family_of(config, str(path))
    if not family.has_classifier:
        raise ConfigError(
            f"[{path}] a head on hidden states needs a family with a ...{_SUFFIX} in transformers "
            f"but {family.model_type} has none"
        )


def _check_score(score: Tensor, decoder: Decoder, config: Mapping[str, Any], path: Path) -> None:
    width = decoder.spec.hidden_size
    if score.dim() != 2 or score.shape[1] != width or not len(score):
        raise ModelFileError(
            f"[{path}] tensor {SCORE} must have shape (labels, {width}) "
            f"but has {tuple(score.shape)}"
        )
    if not is_finite(score):
        raise ModelFileError(f"[{path}] tensor {SCORE} must be finite but holds NaN or infinity")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", len(score))
    if count != len(score):
        raise ModelFileError(
            f"[{path}] tensor {SCORE} must have a row for each of the config's {count} labels "
            f"but has {len(score)}"
        )


def _heads(config: Mapping[str, Any], rows: int, path: Path) -> tuple[int, int] | None:
    ours = config.get(_OURS)
    if ours is None:
        return None
    try:
        outputs, ensemble = int(ours["outputs"]), int(ours["ensemble"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"[{path}] {_OURS} must name outputs and ensemble but is {ours!r:.80}"
        ) from error
    if outputs * ensemble != rows:
        raise ModelFileError(
            f"[{path}] outputs x ensemble of {_OURS} must be the {rows} rows of {SCORE} "
            f"but is {outputs} x {ensemble}"
        )
    return outputs, ensemble


def write_classifier(
    folder: str | Path,
    decoder: Decoder,
    config: Mapping[str, Any],
    score: Tensor,
    heads: tuple[int, int],
    pad_token_id: int | None,
    reading: str | None = None,
) -> None:
    """Writes a folder that transformers loads as the family's `...ForSequenceClassification`.

    score  (E, D); heads (outputs, ensemble) are how E is made up, `reading` what outputs mean
    Use inside `pyengine.files.atomic_folder`. Raises: as write_model.
    """
    labels = [f"LABEL_{i}" for i in range(len(score))]
    written = dict(config) | {
        "architectures": [_architecture(config)],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "num_labels": len(score),
        "pad_token_id": pad_token_id,
        _OURS: {"outputs": heads[0], "ensemble": heads[1], "reading": reading},
    }
    write_model(folder, decoder, written, {}, further={SCORE: score})
