"""Counts tokens as a model or an API does, without changing the given tokenizer."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.text import storable
from embedtune.types import TokenCounter

if TYPE_CHECKING:
    import tiktoken
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

MAX_PIECE = 100_000  # characters encoded at once; tiktoken panics, past `except Exception`, on about a million spaces
MAX_UNKNOWN = 20  # characters of one unknown token; a longer one counts as several
PER_UNKNOWN = 5  # characters of each of these
MAX_WAIT = 3.0  # seconds to wait for the host of tiktoken's tables

TABLE_HOST = "https://openaipublic.blob.core.windows.net"
TABLES = {
    "gpt2": "gpt-2/encodings/main/vocab.bpe",
    "r50k_base": "encodings/r50k_base.tiktoken",
    "p50k_base": "encodings/p50k_base.tiktoken",
    "p50k_edit": "encodings/p50k_base.tiktoken",
    "cl100k_base": "encodings/cl100k_base.tiktoken",
    "o200k_base": "encodings/o200k_base.tiktoken",
    "o200k_harmony": "encodings/o200k_base.tiktoken",
}


# Words in pieces of six letters, numbers in threes, and each other sign or letter of a script without spaces by itself.
_APPROXIMATE = re.compile(r"[^\W\d_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7af\uf900-\ufaff]{1,6}|\d{1,3}|\S")


def token_counter(tokenizer: object = None) -> TokenCounter:
    """Return a counter that finds where the tokens of a text start.

    By default tokens are counted roughly, without a tokenizer and the same everywhere: about as many as those of embedding
    models, in English a tenth more. Pass the model's own tokenizer to count exactly.

    A tokenizer object is copied, and its truncation and padding are off in the copy. Special tokens are neither added nor
    recognised: ``<|endoftext|>`` in a document is text. An unknown token of more than 20 characters (WordPiece makes one of any
    word of more than 100) counts as one for each 5, so that no chunk has an unbounded length.

    Args:
        tokenizer: None to count roughly, the name of a tiktoken encoding (``"o200k_base"``), the name of a model on the Hub or a folder with
            a ``tokenizer.json``, a ``SentenceTransformer``, a fast tokenizer of transformers, a
            ``tokenizers.Tokenizer``, a ``tiktoken.Encoding``, or a ``TokenCounter``, which is returned unchanged.

    Raises:
        ValueError: If the tokenizer is the word ``"model"`` or its file cannot be read.
        FileNotFoundError: If there is no tokenizer of this name, or its table cannot be downloaded.
        TypeError: If it is none of the above.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "press": 1}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> token_counter(words).token_starts("press both buttons").tolist()
        [0, 6, 11]
    """
    if tokenizer is None:
        return _ApproximateCounter()
    import tiktoken
    from tokenizers import Tokenizer

    if isinstance(tokenizer, (str, Path)):
        return _named_counter(tokenizer)
    if isinstance(tokenizer, TokenCounter):
        return tokenizer
    if isinstance(tokenizer, tiktoken.Encoding):
        return _TiktokenCounter(tokenizer)
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # a SentenceTransformer or a processor
    backend = getattr(inner, "backend_tokenizer", inner)  # a fast tokenizer of transformers
    if isinstance(backend, Tokenizer):
        return FastCounter(_for_counting(backend))
    raise TypeError(
        f"tokenizer is a {type(tokenizer).__name__}, whose tokens cannot be located. Pass the name of a "
        f"tiktoken encoding or of a model, a SentenceTransformer, a fast tokenizer, or an object with token_starts()."
    )


@dataclass(frozen=True, slots=True)
class _TiktokenCounter:
    encoding: tiktoken.Encoding

    def token_starts(self, text: str) -> NDArray[np.int64]:
        return _starts_by_piece(text, self._starts)

    def _starts(self, text: str) -> NDArray[np.int64]:
        tokens, which = np.unique(self.encoding.encode_ordinary(text), return_inverse=True)
        lengths = [len(self.encoding.decode_single_token_bytes(token)) for token in tokens.tolist()]
        num_bytes = np.array(lengths, dtype=np.int64)[which]
        starts: NDArray[np.int64] = np.cumsum(num_bytes) - num_bytes
        if text.isascii():
            return starts
        # A token may begin inside a character: it then starts where this character does.
        is_first_byte = (np.frombuffer(text.encode(), dtype=np.uint8) & 0xC0) != 0x80
        character: NDArray[np.int64] = np.cumsum(is_first_byte) - 1
        return character[starts]


@dataclass(frozen=True, slots=True)
class _ApproximateCounter:
    def token_starts(self, text: str) -> NDArray[np.int64]:
        return np.array([match.start() for match in _APPROXIMATE.finditer(text)], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class FastCounter:
    """Counts the tokens of a tokenizer of the package tokenizers."""

    tokenizer: Tokenizer

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return where tokens start, see `TokenCounter`."""
        return _starts_by_piece(text, self._starts)

    def unknown_share(self, text: str) -> float:
        """Return the share of the visible characters that are in unknown tokens, of which the model sees nothing."""
        unknown = self._unknown()
        if unknown is None:
            return 0.0
        found = self.tokenizer.encode(storable(text), add_special_tokens=False)
        num_lost = sum(
            end - start for (start, end), one in zip(found.offsets, found.ids, strict=True) if one == unknown
        )
        return num_lost / max(1, len("".join(text.split())))

    def _unknown(self) -> int | None:
        """Return the id of the unknown token, if there is one."""
        token = getattr(self.tokenizer.model, "unk_token", None)
        return self.tokenizer.token_to_id(token) if token else getattr(self.tokenizer.model, "unk_id", None)

    def _starts(self, text: str) -> NDArray[np.int64]:
        found = self.tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
        starts: NDArray[np.int64] = np.maximum.accumulate(offsets[:, 0])  # some normalizers reorder characters
        is_long = offsets[:, 1] - offsets[:, 0] > MAX_UNKNOWN
        if not is_long.any() or (unknown := self._unknown()) is None:
            return starts
        is_long &= np.array(found.ids) == unknown
        more = [np.arange(start + PER_UNKNOWN, end, PER_UNKNOWN) for start, end in offsets[is_long].tolist()]
        return np.sort(np.concatenate([starts, *more]))


def _for_counting(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, without truncation, padding and special tokens."""
    copied: Tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = True  # as text, that is
    return copied


def _starts_by_piece(text: str, starts: Callable[[str], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Encode a text of any length in pieces, with half characters replaced."""
    text = storable(text)
    parts = [starts(text[start:stop]) + start for start, stop in _pieces(text)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Cut a text where tokens end in practically every tokenizer: after a newline, else before a space."""
    start = 0
    while start < len(text):
        stop = start + MAX_PIECE
        if stop < len(text):
            cut = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start + 1, stop)
            stop = cut if cut > start else stop
        yield start, min(stop, len(text))
        start = stop


def _named_counter(name: str | Path) -> TokenCounter:
    import tiktoken
    from tokenizers import Tokenizer

    if name == "model":
        raise ValueError(
            "tokenizer='model' is a string, not a tokenizer. Pass the model itself, tokenizer=model, or its name, for instance "
            "tokenizer='sentence-transformers/all-MiniLM-L6-v2'."
        )
    if name in tiktoken.list_encoding_names():
        return _TiktokenCounter(_tiktoken_encoding(str(name)))
    file = _tokenizer_file(name)
    try:
        return FastCounter(_for_counting(Tokenizer.from_file(str(file))))
    except Exception as err:  # the Rust side raises nothing more specific
        raise ValueError(f"{file} is not a tokenizer that the package tokenizers can load: {err}") from err


def _tokenizer_file(name: str | Path) -> Path:
    """Find the ``tokenizer.json`` of a local folder or of a model on the Hub."""
    import tiktoken
    from huggingface_hub import hf_hub_download

    folder = Path(name)
    if folder.is_dir():
        files = [*folder.glob("tokenizer.json"), *sorted(folder.glob("0_*/tokenizer.json"))]
        if not files:
            raise FileNotFoundError(f"{folder} has no tokenizer.json. Pass the model itself: tokenizer=model.")
        return files[0]
    try:
        return Path(hf_hub_download(str(name), "tokenizer.json"))
    except (OSError, ValueError) as err:
        raise FileNotFoundError(
            f"Cannot find the tokenizer {str(name)!r}: it is neither a folder nor one of tiktoken's encodings "
            f"({', '.join(tiktoken.list_encoding_names())}), and the Hub has no tokenizer.json for it "
            f"({type(err).__name__}). Check the name, or pass the model itself: tokenizer=model."
        ) from err


def _tiktoken_encoding(name: str) -> tiktoken.Encoding:
    """Load an encoding; tiktoken alone would wait for its table forever."""
    import tiktoken
    import tiktoken.registry

    if name in TABLES and name not in tiktoken.registry.ENCODINGS and not _table_file(name).is_file():
        _require_answer(name)
    try:
        return tiktoken.get_encoding(name)
    except OSError as err:  # requests' errors are among these
        raise _missing_table(name, type(err).__name__) from err


def _table_file(name: str) -> Path:
    """Return where tiktoken caches an encoding's table: under the SHA-1 of its URL."""
    default = Path(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    address = f"https://openaipublic.blob.core.windows.net/{TABLES[name]}"
    return Path(folder, hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest())


def _require_answer(name: str) -> None:
    """Raise unless the host of an encoding's table answers in time."""
    import requests

    problems = [f"no answer in {MAX_WAIT:.0f} seconds"]

    def ask() -> None:
        try:
            requests.head(f"{TABLE_HOST}/{TABLES[name]}", timeout=MAX_WAIT)
            problems.clear()
        except requests.RequestException as err:
            problems[:] = [type(err).__name__]

    # The time-out of requests does not cover the DNS look-up, which can take a minute.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(MAX_WAIT + 0.5)
    if problems:
        raise _missing_table(name, problems[0])


def _missing_table(name: str, problem: str) -> FileNotFoundError:
    file = _table_file(name)
    return FileNotFoundError(
        f"The table of the tiktoken encoding {name!r} is not in {file.parent}, and {TABLE_HOST} cannot be reached "
        f"({problem}). Either set TIKTOKEN_CACHE_DIR to a folder that holds {TABLES.get(name, name)} under the name "
        f"{file.name}, or count with the embedding model's own tokenizer: tokenizer=model."
    )
