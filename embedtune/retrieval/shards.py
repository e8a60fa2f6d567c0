"""A corpus in shards: the processes of a launcher encode one Parquet file each at a time, and go on where they stopped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from accelerate.utils import get_cpu_distributed_information
from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.models.load import load_model
from embedtune.retrieval.encoders import ModelEncoder, encode_chunks
from embedtune.retrieval.engine import EngineParts, require_room
from embedtune.retrieval.fingerprint import corpus_fingerprint, model_fingerprint
from embedtune.retrieval.index import SCHEMA, ChunkIndex, order_of_ids, table_of_chunks, table_of_rows
from embedtune.retrieval.words import WordIndex
from embedtune.storage import reading, replace_file, replaced_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.types import Chunk, ContextPart

MANIFEST = "shards.json"  # the model, and which shards there will be; written before the first

_KEY = b"embedtune"  # of what a Parquet file says about its vectors
_REMEDY = "Delete it and call encode_shards() again: only what is missing is encoded."


def write_corpus(
    chunks: Iterable[Chunk], folder: str | Path, *, context: Sequence[ContextPart] = (), chunks_per_shard: int = 10_000
) -> None:
    """Write chunks to the Parquet files of a new folder, for `encode_shards`. A stream is never held as a whole.

    Args:
        chunks: The chunks.
        folder: It may not exist yet.
        context: What precedes each chunk's text, as in `build_dataset`.
        chunks_per_shard: How many chunks a file has. It is what a process holds at a time, and what is lost if it is killed.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If an id occurs twice in a file, or a text is empty.
    """
    whole("chunks_per_shard", chunks_per_shard)
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists, and what is encoded of it may depend on it. Choose another path.")
    rest = iter(chunks)
    with replaced_folder(folder) as new:
        number = 0
        while some := list(islice(rest, chunks_per_shard)):
            parquet.write_table(table_of_chunks(some, context), new / f"{number:06}.parquet")
            number += 1


def this_process() -> tuple[int, int]:
    """Return which process of a launcher this is, from 0, and how many there are; without a launcher ``(0, 1)``.

    They are read from the environment that torchrun, accelerate and mpirun set. The processes are not connected.
    """
    launched = get_cpu_distributed_information()  # of any device, in spite of its name
    return launched.rank, launched.world_size


def device_of_process() -> str | None:
    """Return the accelerator that the launcher gave to this process, or None: sentence-transformers chooses."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None or this_process()[1] == 1:
        return None
    return f"{kind.type}:{get_cpu_distributed_information().local_rank}"


def encode_shards(
    model: SentenceTransformer | str | Path,
    corpus: str | Path,
    *,
    output_dir: str | Path,
    batch_size: int = 32,
    share: tuple[int, int] | None = None,
    show_progress_bar: bool | None = None,
) -> list[Path]:
    """Encode the shards of this process: all of them, or its share of them under ``accelerate launch`` or ``torchrun``.

    For each Parquet file of the corpus one of the same name is written, with the columns ``_id``, ``text``, ``document_id``,
    ``document_title``, ``headings``, ``page`` and ``vector``, and with the fingerprints of the model and of the rows. A file
    appears once it is whole, and is not encoded again. Processes do not wait for each other: the launcher waits for all.

    Args:
        model: The model; or its name or folder, which is loaded on the device that the launcher gave to this process.
        corpus: A folder with Parquet files, which all processes see, with the columns ``_id`` and ``text``; the others above are
            kept where they are there. A process holds a file at a time: 10,000 chunks are a good size.
        output_dir: A folder that all processes see.
        batch_size: How many texts go through the model at once.
        share: Which of how many shares is encoded, from 0, such as ``(0, 4)``, where something else than a launcher distributes
            the work; by default what the launcher says.
        show_progress_bar: Show the progress in shards of the first process; by default only in a terminal, after two seconds.

    Returns:
        The shards of this process that were encoded now.

    Raises:
        FileNotFoundError: If the corpus has no Parquet files.
        ValueError: If a shard that is there was made of other rows or by another model, the rows are not chunks, or there is
            no such share.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> folder = Path(tempfile.mkdtemp())
        >>> model = et.load_model("minilm", device="cpu")
        >>> write_corpus([et.Chunk("door.md#0", "door.md", "Turn the key to the left.", 0, 25)], folder / "corpus")
        >>> [path.name for path in encode_shards(model, folder / "corpus", output_dir=folder / "vectors")]
        ['000000.parquet']
        >>> encode_shards(model, folder / "corpus", output_dir=folder / "vectors")
        []
        >>> et.Retriever(model, read_shards(folder / "vectors")).search("How do I unlock the door?", k=1)[0].id
        'door.md#0'
    """
    (rank, num_shares), folder = share or this_process(), Path(output_dir)
    if not 0 <= rank < num_shares:
        raise ValueError(f"share={share} must be a number from 0, and how many shares there are: (0, 4) to (3, 4).")
    sources = sorted(Path(corpus).glob("*.parquet"))
    if not sources:
        raise FileNotFoundError(f"{corpus} has no Parquet files (*.parquet). Write them with write_corpus().")
    if folder.resolve() == Path(corpus).resolve():
        raise ValueError(f"The vectors cannot go to the folder of the corpus, {folder}. Choose another output_dir.")
    loaded = load_model(model, device=device_of_process()) if isinstance(model, (str, Path)) else model
    encoder = ModelEncoder(loaded, whole("batch_size", batch_size), show_progress_bar=False)
    known = {
        "model_fingerprint": model_fingerprint(loaded, side="document"),
        "similarity": loaded.similarity_fn_name,
    }
    if (folder / MANIFEST).exists():  # vectors of another model stay what they are
        require_same(folder / MANIFEST, read_manifest(folder), known)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        manifest = known | {"shards": [path.name for path in sources]}
        replace_file(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    mine = sources[rank::num_shares]
    hidden = (None if show_progress_bar is None else not show_progress_bar) if rank == 0 else True
    bar = tqdm(mine, desc="Encoding", unit="shard", delay=2 * (hidden is None), leave=False, disable=hidden)
    return [folder / path.name for path in bar if _encode(encoder, path, folder / path.name, known)]


def read_shards(folder: str | Path) -> ChunkIndex:
    """Read what `encode_shards` wrote into memory, for a `Retriever` of the same model.

    Raises:
        FileNotFoundError: If a shard is missing, since a process was stopped or has not finished.
        ValueError: If a shard is damaged or another model's, or an id occurs twice.
    """
    manifest = read_manifest(folder)
    shards = [read_shard(path, manifest) for path in shard_paths(folder, manifest)]
    table = pyarrow.concat_tables([shard.chunks for shard in shards])
    vectors = np.concatenate([shard.vectors for shard in shards])[order_of_ids(table)]
    return ChunkIndex(table_of_rows(table), vectors, shards[0].model_fingerprint, shards[0].similarity)


def shards_to_engine(folder: str | Path, address: str, *, name: str = "chunks", engine_token: str = "") -> None:
    """Write what `encode_shards` wrote to Milvus, a shard at a time. `Retriever.from_engine` searches there.

    Shards are read twice: first their words are counted. Held are a shard, 16 bytes for each distinct token of the corpus, up
    to three times while they are merged, and 8 bytes for each chunk.

    Args:
        folder: The ``output_dir`` of `encode_shards`.
        address: As for `Retriever.to_engine`.
        name: Of the collection.
        engine_token: For Milvus.

    Raises:
        OptionalDependencyError: If ``pymilvus`` is not installed.
        FileNotFoundError: If a shard is missing.
        ValueError: If a shard is damaged or another model's, an id occurs twice, a text is too long for Milvus, or Milvus has
            the collection already.
    """
    manifest = read_manifest(folder)
    paths = shard_paths(folder, manifest)
    words = _Words()
    lengths = []
    for path in tqdm(paths, desc="Counting words", delay=2, leave=False):
        index = read_shard(path, manifest)
        require_room(index.chunks)
        lengths.append(words.add(index))
    hashes, counts = words.merged()
    num_chunks, num_tokens = sum(map(len, lengths)), int(sum(float(one.sum()) for one in lengths))
    parts = EngineParts.create(
        read_shard(paths[0], manifest), address, name=name, token=engine_token, num_words=len(hashes)
    )
    for path, some in zip(tqdm(paths, desc="Writing", delay=2, leave=False), lengths, strict=True):
        index = read_shard(path, manifest)
        parts.write(index.chunks, index.vectors, some, mean_length=num_tokens / max(num_chunks, 1))
    parts.words.count(hashes, counts)
    parts.client.flush(name)
    [found] = parts.client.query(name, filter="", output_fields=["count(*)"])
    if found["count(*)"] != num_chunks:
        raise ValueError(
            f"The shards in {folder} have {num_chunks:,} chunks, but only {found['count(*)']:,} different ids. Make them unique, "
            f"and drop the collections {name!r} and '{name}_words' at {address}."
        )
    parts.finish(num_chunks, num_tokens)


class _Words:
    """How many chunks contain each token, summed over shards."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def add(self, index: ChunkIndex) -> NDArray[np.float64]:
        """Count the words of a shard, and return how many tokens each of its chunks has."""
        words = WordIndex.build(index.texts())
        self._parts.append((words.hashes, words.num_chunks_with))
        new = sum(len(hashes) for hashes, _ in self._parts[1:])
        if new > len(self._parts[0][0]):  # so a token is merged a few times, not once for each shard
            self._parts = [self.merged()]
        return words.lengths

    def merged(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the tokens, ascending, and in how many chunks each is."""
        hashes, where = np.unique(np.concatenate([part[0] for part in self._parts]), return_inverse=True)
        counts = np.bincount(where, weights=np.concatenate([part[1] for part in self._parts]), minlength=len(hashes))
        return hashes, counts.astype(np.int64)


def _encode(encoder: ModelEncoder, source: Path, target: Path, known: Mapping[str, str]) -> bool:
    """Encode a shard and return True, or return False if it is there already.

    Raises:
        ValueError: If another one is there, or the rows are not chunks.
    """
    table = _source(source)
    rows = zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)
    wanted = {**known, "corpus_fingerprint": corpus_fingerprint(rows)}
    if target.exists():
        require_same(target, said_by(target), wanted)
        return False
    vectors = encode_chunks(encoder, table["text"].to_pylist(), ids=table["_id"].to_pylist())
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
    table = table.append_column("vector", column).replace_schema_metadata({_KEY: json.dumps(wanted)})
    content = io.BytesIO()
    parquet.write_table(table, content)
    replace_file(target, content.getvalue())
    return True


def _source(path: Path) -> pyarrow.Table:
    with reading(path, remedy="Copy it again."):
        names = parquet.read_schema(path).names
        table = parquet.read_table(path, columns=[name for name in SCHEMA.names if name in names])
    if missing := {"_id", "text"} - set(names):
        raise ValueError(f"{path} has no column {min(missing)!r}; it has {names}. Chunks need '_id' and 'text'.")
    if table["_id"].null_count or table["text"].null_count:
        raise ValueError(f"{path} has chunks without an id or a text (null). Leave them out.")
    try:
        return table_of_rows(table)
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the model and the names of the shards."""
    path = Path(folder) / MANIFEST
    with reading(path, remedy="Encode the corpus with encode_shards()."):
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["model_fingerprint"], manifest["similarity"], manifest["shards"][0]
    return manifest


def shard_paths(folder: str | Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Return the files of all shards.

    Raises:
        FileNotFoundError: If one is missing.
    """
    paths = [Path(folder) / Path(name).name for name in manifest["shards"]]
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} shards are missing in {folder}, such as {missing[0].name}. Call encode_shards() "
            "again: only what is missing is encoded."
        )
    return paths


def said_by(path: Path) -> dict[str, str]:
    """Return what a shard says about its vectors."""
    with reading(path, remedy=_REMEDY):
        said: dict[str, str] = json.loads(parquet.read_schema(path).metadata[_KEY])
    return said


def require_same(path: Path, said: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raise a ``ValueError`` unless a file says what is wanted."""
    made = {
        "model_fingerprint": "by another model",
        "similarity": "for another similarity",
        "corpus_fingerprint": "of other rows",
    }
    for key, value in wanted.items():
        if said.get(key) != value:
            raise ValueError(
                f"{path} was made {made[key]} ({str(said.get(key))[:15]}, not {value[:15]}). Choose another output_dir, or delete "
                "the file and call encode_shards() again."
            )


def read_shard(path: Path, manifest: Mapping[str, Any]) -> ChunkIndex:
    """Read a shard.

    Raises:
        ValueError: If it is damaged or another model's.
    """
    known = {key: manifest[key] for key in ("model_fingerprint", "similarity")}
    require_same(path, said_by(path), known)
    with reading(path, remedy=_REMEDY):
        table = parquet.read_table(path)
        column = table["vector"].combine_chunks()
        vectors = (
            column.flatten().to_numpy().reshape(len(table), column.type.list_size).copy()
        )  # torch warns about memory that it may not write
        return ChunkIndex(table.select(SCHEMA.names).cast(SCHEMA), vectors, **known)
