"""Reads documents from files, strings, tables and datasets."""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from tqdm.auto import tqdm

from embedtune.corpus.files import decoded, names_in, read_bytes, storable_name
from embedtune.corpus.formats import Content, json_lines, read_text, table_rows
from embedtune.corpus.junk import without_junk
from embedtune.corpus.office import EXTENSIONS as OFFICE
from embedtune.corpus.office import read_office
from embedtune.corpus.problems import OnError, Problems, UnreadableError, one_line
from embedtune.corpus.rows import QUESTION_COLUMNS, Columns, document_from_row, shown
from embedtune.tables import Listing, Row, excerpt
from embedtune.types import Document

if TYPE_CHECKING:
    from datasets import Dataset


ROWS = (".jsonl", ".csv", ".tsv")
EXTENSIONS = (".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".xhtml", ".ipynb", *ROWS, *OFFICE)

MAX_PATH = 1000  # characters; a longer string is no path


@dataclass(frozen=True, slots=True)
class _Options:
    columns: Columns
    encoding: str
    problems: Problems
    hide_progress: bool | None


class Documents(Listing[Document]):
    """Documents, as a list that a notebook shows as a table."""

    header: ClassVar[Row] = ("id", "title", "characters", "text")

    @staticmethod
    def row(one: Document) -> Row:
        """Return the cells of a document."""
        return one.id, one.title, f"{len(one.text):,}", excerpt(one.text)


def read_documents(
    source: str | Path | Iterable[str | Path] | Dataset,
    *,
    text_column: str | Sequence[str] | None = None,
    id_column: str | None = None,
    title_column: str | None = None,
    keywords_column: str | None = None,
    question_column: str | None = None,
    encoding: str = "utf-8",
    on_error: OnError = "warn",
    show_progress_bar: bool | None = None,
) -> list[Document]:
    r"""Read documents from a folder, files, a dataset, a DataFrame or strings.

    A folder is read recursively, in the order of the paths, without hidden files, links to folders, and links that lead out
    of it. The id of a document is its path relative to the folder:

    * ``.txt``: the whole text.
    * ``.md``, ``.markdown``, ``.rst``, ``.ipynb``: ``title`` and ``keywords`` come from YAML front matter; without it the title
      is the first heading of level 1. Of notebooks the Markdown and the code are read, not the outputs.
    * ``.html``, ``.htm``, ``.xhtml``: what people read of the page, with headings, lists, tables and code as Markdown; ``<title>``
      and ``<meta name="keywords">``.
    * ``.pdf``, ``.docx``, ``.pptx``, ``.xlsx``, ``.epub``: with ``pip install 'embedtune[documents]'``. Headings and tables become
      Markdown, and chunks know their page or slide.
    * ``.jsonl``: one document on each line, an object with the columns below. The default id is ``"path:line"``.
    * ``.csv``, ``.tsv``: one document in each row. The default id is ``"path:row"``.

    All newlines become ``\n``, and a byte-order mark is removed. What no one reads is taken out, and counted in a warning: data
    URIs, base64, hex dumps, minified code, and the headers and footers that the pages of a PDF repeat.

    Args:
        source: A path (a string is always a path), a list of paths, a list of strings, a DataFrame, or a dataset or other rows.
            A list of strings is one of paths if each of them exists.
        text_column: The column with the text, or several, which become lines of ``"name: value"``. By default ``"text"``; the
            row of a CSV file or a DataFrame without it is the text of all its columns.
        id_column: The column with the id; by default ``"id"`` if it exists, else rows are numbered from 0.
        title_column: The column with the title; by default ``"title"`` if it exists.
        keywords_column: The column with the keywords, a list or separated by commas; by default ``"keywords"`` if it
            exists.
        question_column: A column with one or several questions that the row answers, as in a FAQ. They become
            `Document.questions` instead of text, see `questions_of`.
        encoding: The encoding of the files. A file that is not in it is read in the encoding that its bytes suggest, with a
            warning.
        on_error: ``"warn"`` leaves out what cannot be read, and says at the end what and why, by kind; ``"raise"`` stops at
            the first.
        show_progress_bar: Whether to show progress; by default only in a terminal, after two seconds.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If there are no documents, two have the same id, or ``on_error="raise"`` and a file or row is unusable.
        TypeError: If the source is none of the above.

    Example:
        >>> read_documents(["Press both buttons.", "Lift the door."])[1].text
        'Lift the door.'
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} is unknown. Choose one of {', '.join(map(repr, get_args(OnError)))}.")
    try:
        codecs.lookup(encoding)
    except LookupError as err:
        raise ValueError(f"encoding={encoding!r} is unknown to Python. Most files are 'utf-8'.") from err
    text = text_column if isinstance(text_column, str) or text_column is None else tuple(text_column)
    columns = Columns(text, id_column, title_column, keywords_column, question_column)
    hidden = None if show_progress_bar is None else not show_progress_bar
    options = _Options(columns, encoding, Problems(on_error), hidden)
    documents = _read_source(source, options)
    if not documents:
        found = f" What was left out:\n{found}" if (found := options.problems.summary()) else ""
        raise ValueError(f"There are no documents: the source is empty, or nothing of it can be read.{found}")
    if question_column is not None and not any(document.questions for document in documents):
        options.problems.notes[f"question_column={question_column!r}: no row has such a column with a question"] += 1
    _require_unique_ids(documents)
    options.problems.log()
    return Documents(documents)


def _read_source(source: Any, options: _Options) -> list[Document]:
    if isinstance(source, (str, Path)):
        return _read_paths([Path(source)], options)
    if isinstance(source, (bytes, Mapping)) or not isinstance(source, Iterable):
        raise TypeError(
            f"source is a {type(source).__name__}. Pass a path, a list of paths or strings, a DataFrame, or one split of a "
            f"dataset, such as dataset['train']."
        )
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a DataFrame of pandas or polars
        return _read_rows(
            _rows_of_frame(source), replace(options, columns=replace(options.columns, all_if_no_text=True))
        )
    if isinstance(source, (list, tuple)) and source and all(map(_is_path, source)):
        return _read_paths([Path(one) for one in source], options)
    return _read_rows(source, options)


def _is_path(one: object) -> bool:
    """Whether this is a path; a string is one if there is such a file or folder."""
    if isinstance(one, str) and 0 < len(one) <= MAX_PATH and "\n" not in one and "\0" not in one:
        with suppress(OSError):
            return Path(one).exists()
    return isinstance(one, Path)


def _rows_of_frame(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame, with None for what is missing."""
    rows = frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records")
    return [{str(name): None if _is_missing(value) else value for name, value in row.items()} for row in rows]


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas' NA; only the first is equal to itself."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _read_paths(paths: list[Path], options: _Options) -> list[Document]:
    """Read files and folders; ids are relative to the folder, or to the one that several have in common."""
    files: list[tuple[Path, str, Path | None]] = []  # the path, the id, and the folder that links must not lead out of
    folders = [path if _is_folder(path) else path.parent for path in paths]
    root = folders[0] if len(paths) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    for path, folder in zip(paths, folders, strict=True):
        shared = folder if len(paths) == 1 else folder.absolute()
        if path != folder and path.suffix.lower() not in EXTENSIONS:
            raise ValueError(
                f"{one_line(path)} cannot be read: the supported extensions are {', '.join(EXTENSIONS)}. Convert it to one of "
                "them, or pass its text in a list: [text]."
            )
        inside, names = (
            (folder, names_in(folder, EXTENSIONS, options.problems)) if path == folder else (None, [path.name])
        )
        files += [(folder / name, (shared / name).relative_to(root).as_posix(), inside) for name in names]
    documents: list[Document] = []
    for file, name, inside in tqdm(files, desc="Reading", unit="file", delay=2, disable=options.hide_progress):
        with options.problems.tolerated():
            before = len(documents), sum(map(len, options.problems.left_out.values()))
            for document in _read_file(file, name, inside, options):
                documents.append(document)  # also those above a line that ends the file
            if before == (len(documents), sum(map(len, options.problems.left_out.values()))):
                options.problems.leave_out("without text", f"{one_line(file)} has no text.")
    return documents


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as err:  # a text in place of a path may be too long for one, or hold NULs
        raise FileNotFoundError(
            f"There is no file or folder {str(path)[:100]!r}. A string is always a path; pass texts as a list: [text]."
        ) from err


def _read_file(file: Path, name: str, inside: Path | None, options: _Options) -> Iterator[Document]:
    if name != (readable := storable_name(name)):
        options.problems.notes[f"the name of {one_line(readable)} is not UTF-8 and was read as Latin-1"] += 1
    data = read_bytes(file, inside=inside)
    extension = file.suffix.lower()
    if extension in OFFICE:
        yield from _from_content(read_office(data, file), file, readable, options)
        return
    text = decoded(data, file, options.encoding, options.problems)
    del data
    if extension in ROWS:
        yield from _read_table(text, file, readable, options)
    else:
        yield from _from_content(read_text(text, file), file, readable, options)


def _from_content(content: Content, file: Path, name: str, options: _Options) -> Iterator[Document]:
    """Join the pages of a file to a document, if there is any text."""
    pages = [_cleaned(page, options) for page in content.pages]
    starts, length = [], 0
    for page in pages:
        starts.append(length)
        length += len(page) + 2
    row = {"text": "\n\n".join(pages), "title": content.title or None, "keywords": content.keywords}
    if row["text"].strip():
        document = document_from_row(row, Columns(), where=one_line(file), default_id=name)
        yield replace(document, page_starts=tuple(starts)) if content.has_page_numbers else document


def _cleaned(text: str, options: _Options) -> str:
    text, counts = without_junk(text)
    for kind, count in counts.items():
        options.problems.notes[f"taken out, since no one reads it: {kind}"] += count
    return text


def _read_table(text: str, file: Path, name: str, options: _Options) -> Iterator[Document]:
    """Read the rows of JSONL, CSV or TSV."""
    where, columns = one_line(file), options.columns
    is_table = file.suffix.lower() != ".jsonl"
    separator = "\t" if file.suffix.lower() == ".tsv" else ""
    rows = table_rows(text, where, separator=separator) if is_table else json_lines(text, where)
    columns = replace(columns, all_if_no_text=is_table)
    unit = "row" if is_table else "line"
    for number, read in rows:
        with options.problems.tolerated():
            row = read()
            _offer_questions(row, options)
            yield _from_row(row, columns, f"{where}, {unit} {number}", f"{name}:{number}", options)


def _offer_questions(row: Mapping[str, Any], options: _Options) -> None:
    """Say that there are questions, unless they were asked for."""
    column = next((name for name in row if str(name).strip().casefold() in QUESTION_COLUMNS), None)
    if column is not None and options.columns.questions is None:
        options.problems.notes[
            f"rows with a column {column!r}: question_column={column!r} keeps it as questions for training and evaluation"
        ] += 1


def _from_row(row: Mapping[str, Any], columns: Columns, where: str, default_id: str, options: _Options) -> Document:
    document = document_from_row(row, columns, where=where, default_id=default_id)
    text = _cleaned(document.text, options)
    if not text.strip():
        raise UnreadableError("without text that people read", f"{where} has only what a machine reads.")
    return replace(document, text=text) if text != document.text else document


def _read_rows(rows: Iterable[Any], options: _Options) -> list[Document]:
    documents = []
    text_column = options.columns.text if isinstance(options.columns.text, str) else "text"
    for number, row in enumerate(tqdm(rows, desc="Reading", unit="row", delay=2, disable=options.hide_progress)):
        with options.problems.tolerated():
            fields = {text_column: row} if isinstance(row, str) else row
            if not isinstance(fields, Mapping):
                expected = "a string or a mapping of columns is expected"
                raise UnreadableError("of a wrong type", f"row {number} is {shown(row)}; {expected}.")
            _offer_questions(fields, options)
            documents.append(_from_row(fields, options.columns, f"row {number}", str(number), options))
    return documents


def _require_unique_ids(documents: list[Document]) -> None:
    counts = Counter(document.id for document in documents)
    identifier, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} documents have the id {identifier!r}. Ids must be unique, because chunk ids contain them: "
            f"choose another column with id_column=..., or change the ids."
        )
