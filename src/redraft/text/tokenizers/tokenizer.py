"""Tokenizers: text to ids and back, one class for bytes, `tokenizer.json` and sentencepiece models.

A tokenizer owns the ids 0 .. size - 1, of which `eos` ends a document. Ids that only a model needs ([MASK], BOS) are
not text: the model adds them from `size` upwards. Text is only ever text: the characters `<|endoftext|>` inside a
document are encoded as those characters, not as the special token.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError, require
from redraft.files import clean, make_folder, read_text, whereabouts, whole_file

Ids = NDArray[np.int64]

_PIECE = 1 << 16  # characters; both libraries are 1.7 times as fast on these as on whole books, and need less memory
_WORD_START = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # a space between letters: tokenizers seldom merge across it
_CONTEXT = 200  # characters on either side of a cut that must encode alike with and without it
END_OF_DOCUMENT = (
    "</s>",
    "<|endoftext|>",
    "<eos>",
    "<|end_of_text|>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "[SEP]",
)
# Of a text's bytes, the share that may be lost (`Tokenizer.lost`) before bits per byte of it are withheld: what is not encoded
# costs nothing.
MOST_LOST = 0.01
_BYTES_FILE = "bytes.json"
_GPT2_FILES = ("encoder.json", "vocab.bpe")
# Text ids of the papers' tokenizers, by the names that recipes have for them.
PUBLISHED = {"gpt2": 50257, "llama2_32k": 32000, "mistral_v1_32k": 32000, "nemotron_128k": 131072}
_ACCEPTED = (
    "'bytes', a tokenizer.json, a sentencepiece .model, or a folder that holds one of these or GPT-2's "
    "encoder.json and vocab.bpe"
)


class Tokenizer(ABC):
    """`name` is for people; `fingerprint` is the sha256 (hex) of what defines it; `size` and `eos` as above."""

    name: str
    size: int
    eos: int
    fingerprint: str
    cuts_long_text: bool

    @final
    def encode(self, text: str) -> Ids:
        """The ids of a text, int64 [n], with nothing added before or after.

        Half of a surrogate pair, which no UTF-8 holds, is read as `?`. Long text is cut before words, where it is seen that
        this changes no token nearby (`_is_boundary`).
        """
        text = clean(text)
        if not self.cuts_long_text or len(text) <= _PIECE:
            return self._ids(text)
        cuts = [*self._cuts(text), len(text)]
        rest = [self._after_word(text[start:stop]) for start, stop in pairwise(cuts)]
        return np.concatenate([self._ids(text[: cuts[0]]), *rest])

    @final
    def encode_after(self, text: str) -> Ids:
        """The ids of a text that follows other text: none begins with the space that many models put before a first word."""
        lead, ids = self._ids("\n"), self.encode("\n" + text)
        return ids[len(lead) :] if np.array_equal(ids[: len(lead)], lead) else self.encode(text)

    @final
    def decode(self, ids: Iterable[int] | Ids) -> str:
        """The text of ids; `eos` and ids that are not text (< 0 or >= size) leave nothing behind."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
        return self._text(array[(array >= 0) & (array < self.size) & (array != self.eos)])

    @final
    def lost(self, text: str, ids: Ids) -> int:
        """UTF-8 bytes of the characters of a text that its ids do not give back: dropped, unknown, or become others, as
        capitals of a tokenizer that has none. White space does not count, which many tokenizers move."""
        back = self.decode(ids)
        if back == text:
            return 0
        gone = Counter(text) - Counter(back)
        return sum(n * len(c.encode(errors="replace")) for c, n in gone.items() if not c.isspace())

    @final
    def __repr__(self) -> str:
        kind = self.name.partition(":")[0]
        return f"<{kind} tokenizer, {self.size} ids, fingerprint {self.fingerprint[:8]}>"

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes into `folder` what `load_tokenizer(folder)` needs."""

    @abstractmethod
    def _ids(self, text: str) -> Ids: ...

    @abstractmethod
    def _text(self, ids: Ids) -> str: ...

    def _cuts(self, text: str) -> Iterable[int]:
        start = 0
        while len(text) - start > _PIECE:
            # a tokenizer that does merge across words is soon found out, and its text then encoded in one piece
            places = (match.end() for match in islice(_WORD_START.finditer(text, start + _PIECE), 8))
            cut = next((place for place in places if self._is_boundary(text, place)), None)
            if cut is None:
                return
            yield cut
            start = cut

    def _is_boundary(self, text: str, cut: int) -> bool:
        left, right = text[cut - _CONTEXT : cut], text[cut : cut + _CONTEXT]
        apart = np.concatenate([self._ids(left), self._after_word(right)])
        return np.array_equal(self._ids(left + right), apart)

    def _after_word(self, text: str) -> Ids:
        """The ids of text that follows a word: many models would put a space before text that follows nothing."""
        return self._ids("a" + text)[len(self._ids("a")) :]


@final
class Bytes(Tokenizer):
    """UTF-8 bytes, and 256 to end a document."""

    name, size, eos, cuts_long_text = "bytes", 257, 256, False
    fingerprint = hashlib.sha256(b"bytes").hexdigest()

    def save(self, folder: Path) -> None:
        _write(folder / _BYTES_FILE, b'{"tokenizer": "bytes"}\n')

    def _ids(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def _text(self, ids: Ids) -> str:
        return ids.astype(np.uint8).tobytes().decode(errors="replace")


@final
class HuggingFace(Tokenizer):
    """Any `tokenizer.json`, through the `tokenizers` library. `definition` is the file's text.

    The end of a document is the first of the usual special tokens that it has; without one, an id is appended.
    """

    cuts_long_text = True

    def __init__(self, definition: str) -> None:
        self._definition = definition
        self._engine: Any = _library("tokenizers").Tokenizer.from_str(definition)
        if getattr(self._engine.model, "dropout", None):
            self._engine.model.dropout = None  # same text, same ids
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True
        known = 1 + max(self._engine.get_vocab(with_added_tokens=True).values())
        special = {token.content: i for i, token in self._engine.get_added_tokens_decoder().items()}
        self.eos = next((special[token] for token in END_OF_DOCUMENT if token in special), known)
        self.size = max(known, self.eos + 1)
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()
        self.name = f"tokenizer.json:{self.fingerprint[:8]}"

    def __reduce__(self) -> tuple[type[HuggingFace], tuple[str]]:
        return HuggingFace, (self._definition,)

    def save(self, folder: Path) -> None:
        _write(folder / "tokenizer.json", self._definition.encode())

    def _ids(self, text: str) -> Ids:
        # not `encode`, which holds the interpreter's lock: two threads were no faster than one, and are 1.9 times so
        (encoding,) = self._engine.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.int64)

    def _text(self, ids: Ids) -> str:
        return str(self._engine.decode(ids.tolist(), skip_special_tokens=False))


@final
class SentencePiece(Tokenizer):
    """A sentencepiece `.model`. `model` is the file's bytes. Without an end-of-document id, one is appended."""

    cuts_long_text = True

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._engine: Any = _library("sentencepiece").SentencePieceProcessor(model_proto=model)
        known = self._engine.vocab_size()
        self.eos = self._engine.eos_id() if self._engine.eos_id() >= 0 else known
        self.size = max(known, self.eos + 1)
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.name = f"tokenizer.model:{self.fingerprint[:8]}"

    def __reduce__(self) -> tuple[type[SentencePiece], tuple[bytes]]:
        return SentencePiece, (self._model,)

    def save(self, folder: Path) -> None:
        _write(folder / "tokenizer.model", self._model)

    def _ids(self, text: str) -> Ids:
        return np.array(self._engine.encode(text), np.int64)

    def _text(self, ids: Ids) -> str:
        return str(self._engine.decode(ids.tolist()))


def vocabulary(spec: str | Path) -> int:
    """How many text ids a tokenizer has, or a published one that a recipe names and whose file is not here yet."""
    if not Path(spec).expanduser().exists() and spec in PUBLISHED:
        return PUBLISHED[str(spec)]
    return load_tokenizer(spec).size


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer called `bytes`, in a file, or in a folder. Raises `UserError` for anything else."""
    if spec == "bytes":
        return Bytes()
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        why = whereabouts(path)
        raise UserError(f"no tokenizer {str(spec)!r}{why} (--tokenizer names yours): a tokenizer is {_ACCEPTED}.")
    return _from_file(path)


def parsed(definition: str, where: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json's text, which is in `where`."""
    try:
        return HuggingFace(definition)
    except UserError:
        raise
    except Exception as error:  # the library raises bare `Exception`
        raise UserError(f"the tokenizer in {where} cannot be read ({error}): give --tokenizer") from error


def _from_folder(folder: Path) -> Tokenizer:
    names = (_BYTES_FILE, "tokenizer.json", "tokenizer.model")  # beside the first, the second is for other programs
    found = [folder / name for name in names if (folder / name).is_file()] or sorted(folder.glob("*.model*"))
    if found:
        return _from_file(found[0])
    encoder, merges = (folder / name for name in _GPT2_FILES)
    if not (encoder.is_file() and merges.is_file()):
        raise UserError(f"the folder {folder} holds no tokenizer: a tokenizer is {_ACCEPTED}.")
    return HuggingFace(_gpt2_definition(read_text(encoder), read_text(merges)))


def _from_file(path: Path) -> Tokenizer:
    if path.name in _GPT2_FILES:
        raise UserError(
            f"{path} is half of GPT-2's tokenizer: give the folder that holds {' and '.join(_GPT2_FILES)} ({path.parent})."
        )
    stat = path.stat()
    return _of_state(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(4)
def _of_state(path: Path, size: int, changed: int) -> Tokenizer:
    """The tokenizer in a file as it is now, read once: a study asks for it at each of its runs."""
    data = path.read_bytes()
    if path.name == _BYTES_FILE:
        return Bytes()
    try:
        unmarked = data.removeprefix(BOM_UTF8)
        return HuggingFace(unmarked.decode()) if unmarked.lstrip().startswith(b"{") else SentencePiece(data)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare `Exception` and `RuntimeError`
        raise UserError(f"{path} is not a tokenizer that can be read ({error}): a tokenizer is {_ACCEPTED}.") from error


def _gpt2_definition(encoder: str, merges: str) -> str:
    """GPT-2's original pair of files as the text of a `tokenizer.json`, the same with every version of the library."""
    vocabulary = json.loads(encoder)
    end = {"content": "<|endoftext|>", "id": vocabulary["<|endoftext|>"], "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    definition = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": lines},
    }
    return json.dumps(definition, ensure_ascii=False)


def _library(name: str) -> Any:
    require("this tokenizer", "hf", name)
    return importlib.import_module(name)


def _write(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(data)
