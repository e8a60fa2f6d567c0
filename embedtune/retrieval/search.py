"""Exact search: the best k chunks for each query, block by block, with ties broken by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers.util import SimilarityFunction
from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.retrieval.selection import RunningBest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

ExtraScores = Callable[[slice, slice], "NDArray[np.float32]"]
"""Scores to add for a block of queries and a block of chunks, of shape ``(num_queries, num_chunks)``."""

# 2048 x 2048 float scores are 16 MB: enough for the matrix product to run at full speed, and few enough for the scores to
# be in the processor's cache when the best of them are picked. A few queries take larger blocks of chunks.
BLOCK_SIZE = 2048
_SCORES_PER_BLOCK = BLOCK_SIZE**2

# A matrix product rounds the rows at the edges of its tiles differently from those inside. Blocks filled up to whole tiles
# make equal vectors score equally wherever they are, so that a tie is a tie. A single question that is served takes less:
# only never go alone, since the product of a matrix and one vector is computed by other code.
_TILE = 16
_MIN_QUERIES = 2


class Ranking(NamedTuple):
    """Positions and scores, both of shape ``(num_queries, k)``, best first; a position of -1 means that nothing was found."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


class _Block(NamedTuple):
    start: int
    num_rows: int
    vectors: torch.Tensor
    """The rows, followed by zeros up to a whole tile."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.num_rows)


def top_k(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    k: int,
    *,
    similarity: Similarity = "cosine",
    extra: ExtraScores | None = None,
    is_checked: bool = False,
    block_size: int | None = None,
    device: str | torch.device = "cpu",
    query_ids: Sequence[str] | None = None,
    corpus_ids: Sequence[str] | None = None,
    show_progress_bar: bool | None = None,
) -> Ranking:
    """Find the ``k`` chunks with the highest scores for each query, by scoring all of them.

    The order is total, by falling score and then rising position, so a corpus sorted by id has its ties broken by id.
    Memory beyond the two inputs: a copy of the queries, the result, and a few blocks of scores. The corpus is read block by
    block, so it may be larger than the memory: ``np.load(path, mmap_mode="r")``.

    Args:
        queries: Vectors of shape ``(num_queries, dim)``.
        corpus: Vectors of shape ``(num_chunks, dim)``, in memory or mapped from a file.
        k: How many to return, at most ``num_chunks``.
        similarity: The model's ``similarity_fn_name``; sentence-transformers' own function computes it.
        extra: Scores to add to the similarities.
        is_checked: True if both hold finite vectors, and unit vectors where the similarity is the cosine: they are used as
            they are, without a copy.
        block_size: How many corpus vectors are scored at once; it does not change the result. By default 2,048, or as many
            as fit 16 MB of scores where nothing is copied.
        device: Where to compute.
        query_ids: The queries' ids, for error messages.
        corpus_ids: The corpus vectors' ids, for error messages.
        show_progress_bar: Show how much of the corpus has been searched; by default only in a terminal, after two seconds.

    Raises:
        ValueError: If the shapes do not fit, ``k`` is out of range, or a vector is zero or not finite.

    Example:
        >>> import numpy as np
        >>> corpus = np.array([[1, 0], [0, 1], [2, 0]], dtype=np.float32)
        >>> positions, scores = top_k(np.array([[3, 0]], dtype=np.float32), corpus, k=2)
        >>> positions.tolist(), scores.tolist()
        ([[0, 2]], [[1.0, 1.0]])
    """
    _check_ids(queries, "queries", query_ids)
    _check_ids(corpus, "chunks", corpus_ids)
    _check_arguments(queries, corpus, k=k, block_size=block_size)
    size = block_size or (max(BLOCK_SIZE, _SCORES_PER_BLOCK // max(len(queries), 1)) if is_checked else BLOCK_SIZE)
    unit = similarity == "cosine"
    score = SimilarityFunction.to_similarity_fn("dot" if unit else similarity)
    tile = _MIN_QUERIES if is_checked else _TILE
    options: dict[str, Any] = {
        "unit": unit and not is_checked,
        "is_checked": is_checked,
        "device": torch.device(device),
    }
    with torch.inference_mode():
        rows = list(_blocks(queries, BLOCK_SIZE, kind="query", ids=query_ids, **options))
        best = [RunningBest(block.num_rows, k, device) for block in rows]
        chunks = _blocks(corpus, size, kind="chunk", ids=corpus_ids, **options)
        hidden = None if show_progress_bar is None else not show_progress_bar
        with tqdm(desc="Searching", total=len(corpus), delay=2 * (hidden is None), leave=False, disable=hidden) as bar:
            for block in chunks:  # the outer loop, so that each goes to the device once
                for those, running in zip(rows, best, strict=True):
                    scores = score(_filled(those.vectors, tile), block.vectors)[: those.num_rows, : block.num_rows]
                    if extra is not None:
                        scores = scores + torch.from_numpy(extra(those.rows, block.rows)).to(device)
                    running.add(scores, block.start)
                bar.update(block.num_rows)
        found = [running.result() for running in best]
    return Ranking(
        np.concatenate([part.positions.cpu().numpy() for part in found]),
        np.concatenate([part.scores.cpu().numpy() for part in found]),
    )


def _check_arguments(
    queries: NDArray[np.float32], corpus: NDArray[np.float32], *, k: int, block_size: int | None
) -> None:
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"Queries of shape {queries.shape} cannot be compared with a corpus of shape {corpus.shape}: both must be "
            "(num_texts, dim) with the same dim. Encode both with the same model and the same truncate_dim."
        )
    if len(queries) == 0:
        raise ValueError("There are no queries. Give at least one.")
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= len(corpus):
        raise ValueError(f"k={k} is out of range for a corpus of {len(corpus)}. Choose k from 1 to {len(corpus)}.")
    if block_size is not None:
        whole("block_size", block_size)


def _check_ids(vectors: NDArray[np.float32], kind: str, ids: Sequence[str] | None) -> None:
    if ids is not None and len(ids) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors for {len(ids)} {kind}. The encoder must return one for each text.")


def _blocks(
    vectors: NDArray[np.float32],
    size: int,
    *,
    kind: str,
    ids: Sequence[str] | None,
    unit: bool,
    is_checked: bool,
    device: torch.device,
) -> Iterator[_Block]:
    """Yield blocks of rows on the device, checked, and scaled to unit length if wanted."""
    for start, end in _bounds(len(vectors), size, split_off=is_checked):
        if is_checked:
            rows = torch.from_numpy(vectors[start:end]).to(device)
        else:
            rows = torch.tensor(vectors[start:end], dtype=torch.float32, device=device)
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            _check_norms(norms.squeeze(1), start, kind=kind, ids=ids)
            rows = rows.div_(norms) if unit else rows
        yield _Block(start, end - start, _filled(rows, _TILE) if kind == "chunk" else rows)


def _bounds(num_rows: int, size: int, *, split_off: bool) -> Iterator[tuple[int, int]]:
    """Yield the bounds of blocks; what does not fill a tile may be split off, so that only that is copied to be filled up."""
    whole = num_rows // _TILE * _TILE if split_off else num_rows
    size = -(-size // _TILE) * _TILE if split_off else size
    yield from ((start, min(start + size, whole)) for start in range(0, whole, size))
    if whole < num_rows:
        yield whole, num_rows


def _filled(rows: torch.Tensor, tile: int) -> torch.Tensor:
    """Return the rows followed by zeros up to a multiple of the tile."""
    missing = -len(rows) % tile
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _check_norms(norms: torch.Tensor, start: int, *, kind: str, ids: Sequence[str] | None) -> None:
    """Refuse vectors that are zero or not finite; two finite norms give a finite score."""
    bad = ((norms == 0) | ~norms.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return
    names = [repr(ids[start + i]) if ids is not None else f"row {start + i}" for i in bad[:5]]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise ValueError(
        f"The {kind} vectors of {', '.join(names)}{more} are zero or not finite (NaN, infinity), so they cannot be compared "
        "with anything. Look for empty texts, and for a model that overflows in float16: load it in float32 or bfloat16."
    )
