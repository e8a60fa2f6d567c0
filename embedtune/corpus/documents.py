"""Reads documents from files, strings and datasets."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from embedtune.corpus.markdown import outline
from embedtune.corpus.rows import Columns, document_from_row, shown
from embedtune.corpus.webpages import read_page
from embedtune.tables import Listing, Row, excerpt
from embedtune.types import Document

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

EXTENSIONS = (".txt", ".md", ".markdown", ".html", ".htm", ".jsonl")

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Options:
    columns: Columns
    encoding: str
    on_error: OnError


class Documents(Listing[Document]):
    """Documents, as a list that a notebook shows as a table."""

    header = ("id", "title", "characters", "text")

    @staticmethod
    def row(one: Document) -> Row:
        """Return the cells of a document."""
        return one.id, one.title, f"{len(one.text):,}", excerpt(one.text)


def read_documents(
    source: str | Path | Iterable[str] | Dataset,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    title_column: str | None = None,
    keywords_column: str | None = None,
    encoding: str = "utf-8",
    on_error: OnError = "raise",
) -> list[Document]:
    r"""Read documents from a folder, a file, a dataset or strings.

    A folder is read recursively, in the order of the paths, without hidden files and links to folders. The id of a
    document is its path relative to the folder:

    * ``.txt``: the whole text.
    * ``.md``, ``.markdown``: ``title`` and ``keywords`` come from YAML front matter; without it the title is the first
      ``#`` heading.
    * ``.html``, ``.htm``: the visible text, with headings, lists, tables and code as Markdown; ``<title>`` and
      ``<meta name="keywords">``.
    * ``.jsonl``: one document on each line, an object with the columns below. The default id is ``"path:line"``.

    All newlines become ``\n``, and a byte-order mark is removed.

    Args:
        source: A path (a string is always a path), a list of strings, or a dataset or other rows.
        text_column: The column of a dataset, or the field of a JSONL line, with the text.
        id_column: The column with the id; by default ``"id"`` if it exists, else rows are numbered from 0.
        title_column: The column with the title; by default ``"title"`` if it exists.
        keywords_column: The column with the keywords, a list or separated by commas; by default ``"keywords"`` if it
            exists.
        encoding: The encoding of all files.
        on_error: ``"skip"`` logs a warning for each unusable file or row and continues.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If a file or row is unusable, two documents have the same id, or there are no documents.
        TypeError: If the source is none of the above.

    Example:
        >>> read_documents(["Press both buttons.", "Lift the door."])[1]
        Document(id='1', text='Lift the door.', title='', keywords=())
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} is unknown. Choose one of {', '.join(map(repr, get_args(OnError)))}.")
    try:
        codecs.lookup(encoding)
    except LookupError as err:
        raise ValueError(f"encoding={encoding!r} is unknown to Python. Most files are 'utf-8'.") from err
    columns = Columns(text=text_column, id=id_column, title=title_column, keywords=keywords_column)
    options = _Options(columns, encoding, on_error)
    if isinstance(source, (str, Path)):
        documents = _read_path(Path(source), options)
    elif isinstance(source, (bytes, Mapping)) or not isinstance(source, Iterable):
        raise TypeError(
            f"source is a {type(source).__name__}. Pass a path, a list of strings, or one split of a dataset, "
            f"such as dataset['train']."
        )
    else:
        documents = _read_rows(source, options)
    if not documents:
        raise ValueError("There are no documents: the source is empty, or every file or row was skipped.")
    _require_unique_ids(documents)
    return Documents(documents)


@contextmanager
def _tolerating(on_error: OnError) -> Iterator[None]:
    """Skip a bad file or row with a warning, if that is wanted."""
    try:
        yield
    except ValueError as err:
        if on_error == "raise":
            raise
        logger.warning("Skipped %s", err)


def _read_path(path: Path, options: _Options) -> list[Document]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as err:  # a text in place of a path may be too long for one, or hold NULs
        raise FileNotFoundError(
            f"There is no file or folder {str(path)[:100]!r}. A string is always a path; pass texts as a list: [text]."
        ) from err
    if not is_folder and path.suffix.lower() not in EXTENSIONS:
        raise ValueError(
            f"{path} cannot be read: the supported extensions are {', '.join(EXTENSIONS)}. Convert it to one of them, or pass "
            "its text in a list: [text]."
        )
    folder, names = (path, _names(path)) if is_folder else (path.parent, [path.name])
    documents: list[Document] = []
    for name in names:
        with _tolerating(options.on_error):
            documents += _read_file(folder / name, name, options)
    return documents


def _names(folder: Path) -> list[str]:
    """Return the relative paths of the files to read, sorted."""
    names: list[str] = []
    ignored: Counter[str] = Counter()
    for parent, subfolders, files in os.walk(folder, onerror=_raise_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for link in (path for name in subfolders if (path := Path(parent, name)).is_symlink()):
            logger.warning(
                "%s is a link to a folder and was not followed. Read its target separately if you need it.", link
            )
        for file in (Path(parent, name) for name in files if not name.startswith(".")):
            if file.suffix.lower() in EXTENSIONS:
                names.append(file.relative_to(folder).as_posix())
            else:
                ignored[file.suffix.lower() or "no extension"] += 1
    others = ", ".join(f"{count} with {extension}" for extension, count in sorted(ignored.items())) or "none"
    if not names:
        raise ValueError(
            f"{folder} has no readable file. Supported are {', '.join(EXTENSIONS)}; other files: {others}. "
            "Convert those, or pass their texts in a list."
        )
    if ignored:
        logger.info("Ignored files in %s: %s.", folder, others)
    return sorted(names)


def _raise_unreadable(err: OSError) -> None:
    raise ValueError(f"{err.filename} cannot be listed: {err.strerror}. Change its permissions or move it.") from err


def _read_file(file: Path, name: str, options: _Options) -> list[Document]:
    text = _decoded(file, options.encoding)
    extension = file.suffix.lower()
    if extension == ".jsonl":
        documents = _read_json_lines(text, file, name, options)
    else:
        read = {".md": _markdown_row, ".markdown": _markdown_row, ".html": _html_row, ".htm": _html_row}
        row = read.get(extension, _text_row)(text, file)
        is_blank = not row["text"].strip()
        documents = [] if is_blank else [document_from_row(row, Columns(), where=str(file), default_id=name)]
    if not documents:
        logger.warning("%s has no text and was skipped.", file)
    return documents


def _decoded(file: Path, encoding: str) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError(f"{file} is not a regular file.")  # opening a pipe would wait forever
        data = file.read_bytes()
    except OSError as err:
        raise ValueError(f"{file} cannot be read: {err.strerror}. Repair it, or pass on_error='skip'.") from err
    remedy = "Pass its encoding, encoding=..., or skip such files, on_error='skip'."
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as err:
        byte = data[err.start]
        raise ValueError(f"{file} is not {encoding}: byte 0x{byte:02x} at offset {err.start}. {remedy}") from err
    if "\0" in text:
        raise ValueError(f"{file} is binary or not {encoding}: NUL at character {text.index(chr(0))}. {remedy}")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _text_row(text: str, _: Path) -> dict[str, Any]:
    return {"text": text}


def _markdown_row(text: str, file: Path) -> dict[str, Any]:
    fields, body = _front_matter(text, file)
    title = fields.get("title") or _first_heading(body)
    return {"text": body, "title": title, "keywords": fields.get("keywords")}


def _html_row(text: str, file: Path) -> dict[str, Any]:
    try:
        page = read_page(text)
    except ValueError as err:
        raise ValueError(f"{file} is {err}") from err
    return {"text": page.text, "title": page.title or _first_heading(page.text), "keywords": page.keywords}


def _first_heading(text: str) -> str:
    return next((heading.text for heading in outline(text).headings if heading.level == 1), "")


def _front_matter(text: str, file: Path) -> tuple[dict[str, Any], str]:
    """Split off the YAML between two ``---`` lines, unless it is plain text between two rules."""
    import yaml

    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        fields = yaml.load(match[1], Loader=yaml.BaseLoader)  # all scalars are strings: a title may be 2024 or "No"
    except (yaml.YAMLError, RecursionError) as err:
        mark = getattr(err, "problem_mark", None)
        line = f" at line {mark.line + 2}" if mark else ""
        raise ValueError(
            f"{file} has front matter, between --- lines, that is not valid YAML{line}. Correct it."
        ) from err
    if isinstance(fields, dict):
        return fields, text[match.end() :]
    return {}, text if fields else text[match.end() :]


def _read_json_lines(text: str, file: Path, name: str, options: _Options) -> list[Document]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028 in a string
        if not line.strip():
            continue
        with _tolerating(options.on_error):
            where = f"{file}, line {number}"
            row = _json_object(line, where)
            documents.append(document_from_row(row, options.columns, where=where, default_id=f"{name}:{number}"))
    return documents


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as err:
        raise ValueError(f"{where}, column {err.colno}: this is not JSON: {err.msg}.") from err
    except (ValueError, RecursionError) as err:  # a number of too many digits, brackets nested too deeply
        raise ValueError(f"{where}: this JSON cannot be read ({type(err).__name__}).") from err
    if not isinstance(row, dict):
        raise ValueError(f'{where} is {shown(row)}; an object such as {{"text": "..."}} is expected.')
    return row


def _read_rows(rows: Iterable[Any], options: _Options) -> list[Document]:
    documents = []
    for number, row in enumerate(rows):
        with _tolerating(options.on_error):
            fields = {options.columns.text: row} if isinstance(row, str) else row
            if not isinstance(fields, Mapping):
                raise ValueError(f"row {number} is {shown(row)}; a string or a mapping of columns is expected.")
            documents.append(document_from_row(fields, options.columns, where=f"row {number}", default_id=str(number)))
    return documents


def _require_unique_ids(documents: list[Document]) -> None:
    counts = Counter(document.id for document in documents)
    identifier, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} documents have the id {identifier!r}. Ids must be unique, because chunk ids contain them: "
            f"choose another column with id_column=..., or change the ids."
        )
