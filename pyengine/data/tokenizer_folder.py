"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from pyengine.data.tokenizer_backend import LoadedTokenizer, guarded
from pyengine.errors import ModelFileError

SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
# Files that belong to a tokenizer; they are written back as they were read.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def read_folder(folder: Path) -> LoadedTokenizer:
    """The tokenizer of a Hugging Face folder.

    tokenizer.json alone says what is added around a text, as in transformers 5; add_bos_token and
    add_eos_token of tokenizer_config.json repeat it.

    Raises: ModelFileError naming the file and what is wrong with it.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelFileError(
            f"[tokenizer] folder must have tokenizer.json but {str(folder)!r} has none "
            f"(save_pretrained of a fast transformers tokenizer writes it)"
        )
    files = {name: _read(folder / name) for name in _FILES if (folder / name).is_file()}
    text = _text(files, "tokenizer.json")
    backend = guarded(lambda: Backend.from_str(text), "tokenizer.json must be readable")
    # A length limit or padding in the file would cut or grow texts in silence.
    backend.no_truncation()
    backend.no_padding()
    config = {**_json(files, "special_tokens_map.json"), **_json(files, "tokenizer_config.json")}
    _add_tokens(backend, files, config)
    special = _special_texts(config)
    for name in ("bos_token", "eos_token"):
        if name in special and backend.token_to_id(special[name]) is None:
            raise ModelFileError(
                f"[tokenizer] {name} must be in the vocabulary but {special[name]!r} is not"
            )
    _mark_special(backend, config)
    template = _template(files, config)
    return LoadedTokenizer(backend, special, template, _end_ids(folder), files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"[tokenizer] {path.name} must be readable but: {error.strerror}"
        ) from error


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"[tokenizer] {name} must be UTF-8 but {error.reason}") from error


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(_text(files, name))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"[tokenizer] {name} must be JSON but: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"[tokenizer] {name} must hold an object but holds {value!r:.80}")
    return value


def _add_tokens(backend: Backend, files: Mapping[str, bytes], config: Mapping[str, Any]) -> None:
    """Tokens that tokenizer_config.json or added_tokens.json name, at the ids they give.

    As in transformers, added_tokens_decoder's flags win over tokenizer.json's; added_tokens.json
    has none.
    """
    wanted: dict[int, dict[str, Any]] = {}
    for text, number in _json(files, "added_tokens.json").items():
        wanted[int(number)] = {"content": text}
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        if not (str(key).isdigit() and isinstance(entry, dict) and "content" in entry):
            raise ModelFileError(
                f"[tokenizer] added_tokens_decoder must map ids to tokens but has {key!r:.80}"
            )
        wanted[int(key)] = entry
    for number, entry in sorted(wanted.items()):
        text = entry["content"]
        if backend.token_to_id(text) is None or len(entry) > 1:
            backend.add_tokens([_token(entry)])
        if backend.token_to_id(text) != number:
            raise ModelFileError(
                f"[tokenizer] added token {text!r} must have id {number} "
                f"but gets {backend.token_to_id(text)}"
            )


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _token(entry: Mapping[str, Any], special: bool = False) -> AddedToken:
    flags = {key: bool(entry[key]) for key in _FLAGS if key in entry}
    return AddedToken(entry["content"], **({"special": special} | flags))


def _mark_special(backend: Backend, config: Mapping[str, Any]) -> None:
    """Makes the tokens that the config names (eos_token, ...) special, with the flags they have.

    A flag such as rstrip decides which blanks around the token belong to it, and so the ids.
    """
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for name, text in _special_texts(config).items():
        if backend.token_to_id(text) is None:
            continue
        entry = config[name] if isinstance(config[name], dict) else {"content": text}
        token = added.get(text, _token(entry, special=True))
        token.special = True
        backend.add_special_tokens([token])


def _special_texts(config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if value is None:
            continue
        if not isinstance(value, str):
            raise ModelFileError(f"[tokenizer] {name} must be a text but is {value!r:.80}")
        special[name] = value
    return special


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's; of several named ones, "default"."""
    if "chat_template.jinja" in files:
        return _text(files, "chat_template.jinja")
    template = config.get("chat_template")
    if isinstance(template, list):
        if not all(isinstance(x, dict) and {"name", "template"} <= x.keys() for x in template):
            raise ModelFileError("[tokenizer] chat_template must list named templates but does not")
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    if template is not None and not isinstance(template, str):
        raise ModelFileError(f"[tokenizer] chat_template must be a text but is {template!r:.80}")
    return template


def _end_ids(folder: Path) -> set[int]:
    """Every id that config.json or generation_config.json calls an end of sequence."""
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if not (folder / name).is_file():
            continue
        value = _json({name: _read(folder / name)}, name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        ends.update(check_ids(ids, f"eos_token_id of {name}"))
    return ends


def check_ids(ids: Iterable[Any], where: str) -> list[int]:
    """The ids, if they are ids.

    Raises: ModelFileError otherwise.
    """
    checked = []
    for number in ids:
        if type(number) is not int or number < 0:
            raise ModelFileError(f"[tokenizer] {where} must be token ids but has {number!r:.80}")
        checked.append(number)
    return checked
