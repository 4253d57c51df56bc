"""The tokenizer that a GGUF file describes, rebuilt for the tokenizers library.

Two kinds exist for the supported models: byte-level BPE ("gpt2"), whose way of splitting text
into words the file gives by name, and SentencePiece BPE ("llama"), whose merges follow from the
scores of its pieces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from pyengine.data.tokenizer_backend import LoadedTokenizer, guarded, set_begin_and_end
from pyengine.errors import ConfigError
from pyengine.models.gguf_file import GGUFFile


class _Kind(IntEnum):
    """tokenizer.ggml.token_type"""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# How each vocabulary was split into words when its merges were learned.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama-bpe": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# These begin every text with bos and take a whole word that is a token without any merges.
_LIKE_LLAMA3 = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"))
# Their tokenizer.json composes characters first (NFC), which GGUF's metadata has no place for.
_COMPOSED = frozenset(("qwen2", "deepseek-r1-qwen"))
_PIECE_SPACE = "\u2581"


def read_gguf_tokenizer(file: GGUFFile) -> LoadedTokenizer:
    """The tokenizer in a GGUF file's metadata.

    Raises: ConfigError for a kind that is not supported, by name; ModelFileError for metadata
    that is missing or contradicts itself.
    """
    model = file.need("tokenizer.ggml.model", str)
    tokens, kinds = _vocabulary(file)
    if model == "gpt2":
        pre = file.get("tokenizer.ggml.pre", str, "default") or "default"
        backend = _byte_level(file, tokens, pre)
        adds_bos = pre in _LIKE_LLAMA3
    elif model == "llama":
        backend = _sentencepiece(file, tokens, kinds)
        adds_bos = True
    else:
        raise ConfigError(
            f"[gguf] {file.path.name}: tokenizer.ggml.model must be gpt2 or llama but is {model!r}"
        )
    _add_tokens(file, backend, tokens, kinds)
    special = {
        f"{name}_token": tokens[number]
        for name, number in (
            ("bos", _id(file, "bos", tokens)),
            ("eos", _id(file, "eos", tokens)),
            ("unk", _id(file, "unknown", tokens)),
            ("pad", _id(file, "padding", tokens)),
        )
        if number is not None
    }
    begins = file.get("tokenizer.ggml.add_bos_token", bool, adds_bos)
    ends = file.get("tokenizer.ggml.add_eos_token", bool, False)
    begin = special.get("bos_token") if begins else None
    end = special.get("eos_token") if ends else None
    set_begin_and_end(backend, begin, end)
    ends_of_text = (_id(file, name, tokens) for name in ("eos", "eot", "eom"))
    end_ids = {number for number in ends_of_text if number is not None}
    template = file.get("tokenizer.chat_template", str)
    files = _files(backend, special, template)
    return LoadedTokenizer(backend, special, template, end_ids, files)


def _vocabulary(file: GGUFFile) -> tuple[list[str], list[int]]:
    tokens = file.get_list("tokenizer.ggml.tokens", str)
    if not tokens:
        raise file.refuse("metadata must have tokenizer.ggml.tokens but it is missing")
    kinds = file.get_list("tokenizer.ggml.token_type", int) or [_Kind.NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise file.refuse(
            f"tokenizer.ggml.token_type must have {len(tokens)} values but has {len(kinds)}"
        )
    if len(set(tokens)) != len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise file.refuse(f"tokenizer.ggml.tokens must be distinct but {twice!r} is there twice")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > int(embedding.shape[-1]):
        raise file.refuse(
            f"tokenizer.ggml.tokens must be at most token_embd.weight's {embedding.shape[-1]} rows "
            f"but are {len(tokens)}"
        )
    return tokens, kinds


def _id(file: GGUFFile, name: str, tokens: Sequence[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    number = file.get(key, int)
    if number is not None and not 0 <= number < len(tokens):
        raise file.refuse(f"{key} must be in [0, {len(tokens)}) but is {number}")
    return number


def _byte_level(file: GGUFFile, tokens: Sequence[str], pre: str) -> Backend:
    if pre not in _WORDS:
        raise ConfigError(
            f"[gguf] {file.path.name}: tokenizer.ggml.pre must be one of {tuple(_WORDS)} "
            f"but is {pre!r}"
        )
    merges = file.get_list("tokenizer.ggml.merges", str)
    if merges is None:
        raise file.refuse("metadata must have tokenizer.ggml.merges but it is missing")
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not (left and right) or " " in right:
            raise file.refuse(
                f"tokenizer.ggml.merges must be two parts each but [{index}] is {merge!r}"
            )
        pairs.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = guarded(
        lambda: BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _LIKE_LLAMA3),
        f"{file.path.name}: tokenizer.ggml.merges must fit tokenizer.ggml.tokens",
    )
    backend = Backend(model)
    if pre in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(words), behavior="isolated") for words in _WORDS[pre]]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFFile, tokens: Sequence[str], kinds: Sequence[int]) -> Backend:
    scores = file.get_list("tokenizer.ggml.scores", float)
    if scores is None or len(scores) != len(tokens):
        raise file.refuse(
            f"tokenizer.ggml.scores must have {len(tokens)} values "
            f"but has {0 if scores is None else len(scores)}"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next(
        (t for t, kind in zip(tokens, kinds, strict=True) if kind == _Kind.UNKNOWN), None
    )
    pairs = _merges_by_score(vocabulary, scores, kinds)
    model = guarded(
        lambda: BPE(
            vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True
        ),
        f"{file.path.name}: tokenizer.ggml.tokens must make a vocabulary",
    )
    backend = Backend(model)
    has_prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", _PIECE_SPACE)
    prefix = [normalizers.Prepend(_PIECE_SPACE)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, spaces])
    steps = [decoders.Replace(_PIECE_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        [*steps, *([decoders.Strip(" ", 1, 0)] if has_prefix else [])]
    )
    return backend


def _merges_by_score(
    vocabulary: dict[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose joined piece scores best, leftmost first.

    So each way to cut a piece in two known ones is a merge, in the order of the pieces' scores.
    """
    pieces = [
        (-scores[index], index, piece)
        for piece, index in vocabulary.items()
        if kinds[index] == _Kind.NORMAL and len(piece) > 1
    ]
    merges = []
    for _, _, piece in sorted(pieces):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [(left, right) for left, right in cuts if {left, right} <= vocabulary.keys()]
    return merges


def _add_tokens(
    file: GGUFFile, backend: Backend, tokens: Sequence[str], kinds: Sequence[int]
) -> None:
    """Control tokens are special; user-defined ones are only found before the text is split."""
    for is_special, wanted in (
        (True, (_Kind.CONTROL, _Kind.UNKNOWN)),
        (False, (_Kind.USER_DEFINED,)),
    ):
        added = [
            AddedToken(token, normalized=False, special=is_special)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in wanted and token
        ]
        (backend.add_special_tokens if is_special else backend.add_tokens)(added)
    if backend.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise file.refuse(
            f"tokenizer.ggml.tokens must make {len(tokens)} tokens "
            f"but make {backend.get_vocab_size(with_added_tokens=True)}"
        )


def _files(backend: Backend, special: dict[str, str], template: str | None) -> dict[str, bytes]:
    """The files that make transformers load the same tokenizer."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    files = {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": _as_json(config),
        "special_tokens_map.json": _as_json(special),
    }
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    return files


def _as_json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
