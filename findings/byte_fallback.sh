#!/usr/bin/env bash
# One unfinished byte makes tokenizers' ByteFallback drop the whole characters before it.
#
# Packages   tokenizers 0.23.3, sentencepiece 0.2.1 (for comparison)
# Behaviour  A run of neighbouring byte tokens is decoded as one: if any byte of it is not UTF-8,
#            every byte becomes U+FFFD, also those of complete characters. DecodeStream, which had
#            already given such a character out, then raises instead of going on.
# Seen       bytes          ['<0xE2>', '<0x82>', '<0xAC>', '<0xE2>']
#            Python         '\u20ac\ufffd'
#            sentencepiece  '\u20ac\ufffd'
#            tokenizers     '\ufffd\ufffd\ufffd\ufffd'
#            stream         ['\u20ac', 'Invalid prefix encountered']
# Expected   '\u20ac\ufffd', the euro sign and one mark for the cut byte. An answer that stops at a
#            token limit often ends inside a character. ByteFallback says that it marks the tokens
#            it cannot convert, and the three before can be; SentencePiece, whose decoding this
#            step copies, and Python's errors="replace" keep the complete character.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3 sentencepiece==0.2.1
"$folder/venv/bin/python" - <<'PY'
import io

import sentencepiece
from tokenizers import Tokenizer, decoders, models

euro = "\u20ac"
raw = euro.encode() + euro.encode()[:1]  # one character, and the first byte of another
pieces = [f"<0x{byte:02X}>" for byte in raw]

trained = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the sea is calm"] * 20), model_writer=trained, vocab_size=275,
    byte_fallback=True, model_type="bpe", hard_vocab_limit=False, minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())

vocabulary = ["<unk>", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
ids = {piece: index for index, piece in enumerate(vocabulary)}
tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

stream, parts = decoders.DecodeStream(), []
try:
    for piece in [*pieces, "a"]:
        parts.append(stream.step(tokenizer, ids[piece]))
except Exception as error:  # the library raises plain Exception
    parts.append(str(error).partition(" while")[0])

python, spm = raw.decode(errors="replace"), processor.decode_pieces(pieces)
ours = tokenizer.decode([ids[piece] for piece in pieces])
streamed = [part for part in parts if part]
print(f"bytes          {pieces}\nPython         {python!a}\nsentencepiece  {spm!a}")
print(f"tokenizers     {ours!a}\nstream         {streamed!a}")
assert python == spm == euro + "\ufffd"
assert ours == 4 * "\ufffd"
assert streamed == [euro, "Invalid prefix encountered"]
PY
