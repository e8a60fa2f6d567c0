"""Exact search: the best k of a corpus for each query, in blocks, with ties broken by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from sentence_transformers.util import SimilarityFunction
from tqdm.auto import tqdm

from embedtune.retrieval.selection import Best, RunningBest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Precision = Literal["float32", "bfloat16"]

# 2048 x 2048 float scores are 16 MB: enough for the matrix product to run at full speed, little enough for the scores to
# be in the processor's cache when the best of them are picked.
BLOCK_SIZE = 2048

# A matrix product rounds the rows at the edges of its tiles differently from those inside. Blocks filled up to whole
# tiles make equal vectors score equally wherever they stand, so that a tie is a tie.
_TILE = 16

# How many candidates a search in bfloat16 keeps for each that is wanted.
_CANDIDATES = 2

# How many queries' candidates are scored at once: a few megabytes of vectors.
_RESCORED = 16

# A bfloat16 has eight digits: rounding changes a number by at most this share of it.
_ROUNDING = 2.0**-8


class _Block(NamedTuple):
    start: int
    num_rows: int
    vectors: torch.Tensor
    """The rows, and zeros below them up to a multiple of the tile."""


def top_k(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    k: int,
    *,
    similarity: Similarity = "cosine",
    block_size: int = BLOCK_SIZE,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    query_ids: Sequence[str] | None = None,
    corpus_ids: Sequence[str] | None = None,
    show_progress_bar: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the ``k`` corpus vectors most similar to each query, by looking at all of them.

    The order is total, by falling score and then rising position, so a corpus sorted by id has its ties broken by id.
    Memory beyond the two inputs: a copy of the queries, the result, and a few blocks of ``block_size ** 2`` numbers.
    The corpus is read block by block, so it may be larger than the memory: ``np.load(path, mmap_mode="r")``.

    Args:
        queries: Vectors of shape ``(num_queries, dim)``.
        corpus: Vectors of shape ``(num_chunks, dim)``, in memory or mapped from a file.
        k: How many to return, at most ``num_chunks``.
        similarity: The model's ``similarity_fn_name``; sentence-transformers' own function computes it.
        block_size: How many queries and how many corpus vectors are scored at once. It does not change the result.
        precision: ``"bfloat16"``, for cosine alone, searches with half of the digits, faster where the processor can, and
            scores exactly what may be among the best. Queries for which rounding could have hidden something are searched
            again, so the result is that of ``"float32"`` but for scores that differ in the last digit.
        device: Where to compute.
        query_ids: The queries' ids, for error messages.
        corpus_ids: The corpus vectors' ids, for error messages.
        show_progress_bar: Show how much of the corpus has been searched.

    Returns:
        Scores and positions in ``corpus``, both of shape ``(num_queries, k)``, best first.

    Raises:
        ValueError: If the shapes do not fit, ``k`` is out of range, or a vector is zero or not finite.

    Example:
        >>> import numpy as np
        >>> corpus = np.array([[1, 0], [0, 1], [2, 0]], dtype=np.float32)
        >>> scores, positions = top_k(np.array([[3, 0]], dtype=np.float32), corpus, k=2)
        >>> scores.tolist(), positions.tolist()
        ([[1.0, 1.0]], [[0, 2]])
    """
    _check_ids(queries, "queries", query_ids)
    _check_ids(corpus, "chunks", corpus_ids)
    _check_arguments(queries, corpus, k=k, block_size=block_size)
    rough = precision == "bfloat16"
    if rough and similarity != "cosine":
        raise ValueError(f"precision='bfloat16' is for cosine alone, and similarity is {similarity!r}. Use 'float32'.")
    search = _Search(corpus, similarity, block_size, torch.device(device), corpus_ids, show_progress_bar)
    with torch.inference_mode():
        unit = similarity == "cosine"
        query_blocks = list(_blocks(queries, block_size, kind="query", ids=query_ids, unit=unit, device=device))
        found = search.nearly_best(query_blocks, k) if rough else search.best(query_blocks, k)
    return found.scores.cpu().numpy(), found.positions.cpu().numpy()


class _Search(NamedTuple):
    """A corpus and how to search it."""

    corpus: NDArray[np.float32]
    similarity: Similarity
    block_size: int
    device: torch.device
    ids: Sequence[str] | None
    show_progress_bar: bool

    def best(self, queries: Sequence[_Block], k: int) -> Best:
        """Find the best ``k`` for each query."""
        unit = self.similarity == "cosine"
        score = SimilarityFunction.to_similarity_fn("dot" if unit else self.similarity)
        best = [RunningBest(block.num_rows, k, self.device) for block in queries]
        for chunks in self._chunks():
            for block, running in zip(queries, best, strict=True):
                scores = score(block.vectors, chunks.vectors)
                running.add(scores[: block.num_rows, : chunks.num_rows], chunks.start)
        return _joined(best)

    def nearly_best(self, queries: Sequence[_Block], k: int) -> Best:
        """Find the best ``k`` for each query by cosine: candidates in bfloat16, scored in float32."""
        candidates, error = self._candidates(queries, min(_CANDIDATES * k, len(self.corpus)))
        vectors = torch.cat([block.vectors[: block.num_rows] for block in queries])
        # In the order of positions, so that a stable sort by score breaks ties by position.
        positions = candidates.positions.sort(dim=1).values
        scores = self._exact(vectors, positions)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best = Best(scores[:, :k].contiguous(), positions.gather(1, order[:, :k]))
        # What is no candidate scored at most as the last of them, and at most the error more in truth.
        last = candidates.scores[:, -1]
        is_hidden = best.scores[:, -1] <= last + 2 * _ROUNDING * last.abs() + error
        if candidates.positions.shape[1] < len(self.corpus) and is_hidden.any():
            rows = is_hidden.nonzero().flatten()
            again = self.best([_padded(0, part) for part in torch.split(vectors[rows], self.block_size)], k)
            best.scores[rows], best.positions[rows] = again.scores, again.positions
        return best

    def _candidates(self, queries: Sequence[_Block], k: int) -> tuple[Best, torch.Tensor]:
        """Find the best ``k`` for each query in bfloat16, and how far from the truth a product of vectors may be.

        ``|q c - q' c'| <= |q - q'| |c'| + |q| |c - c'|`` (Cauchy and Schwarz), where what is accented is rounded. The product
        is itself rounded on top of that.
        """
        best = [RunningBest(block.num_rows, k, self.device) for block in queries]
        rounded = [block.vectors.bfloat16() for block in queries]
        largest = torch.zeros((), device=self.device)
        for chunks in self._chunks():
            vectors = chunks.vectors.bfloat16()
            largest = torch.maximum(largest, _changes(chunks.vectors, vectors).max())
            for block, those, running in zip(queries, rounded, best, strict=True):
                scores = (those @ vectors.T).float()
                running.add(scores[: block.num_rows, : chunks.num_rows], chunks.start)
        changes = [
            _changes(block.vectors, those)[: block.num_rows] for block, those in zip(queries, rounded, strict=True)
        ]
        return _joined(best), (1 + _ROUNDING) * (torch.cat(changes) + largest)

    def _chunks(self) -> Iterator[_Block]:
        """Yield blocks of the corpus, which is the outer loop: so each goes to the device and is normalised once."""
        unit = self.similarity == "cosine"
        blocks = _blocks(self.corpus, self.block_size, kind="chunk", ids=self.ids, unit=unit, device=self.device)
        num_blocks = -(-len(self.corpus) // self.block_size)
        yield from tqdm(blocks, desc="Searching", total=num_blocks, disable=not self.show_progress_bar)

    def _exact(self, queries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the cosine of each query and each of its positions, of the shape of ``positions``."""
        scores = torch.empty(positions.shape, device=self.device)
        for i in range(0, len(queries), _RESCORED):
            some = slice(i, i + _RESCORED)
            rows = torch.from_numpy(self.corpus[positions[some].cpu().numpy()]).to(self.device, torch.float32)
            rows /= torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            scores[some] = rows.mul_(queries[some, None]).sum(dim=-1)
        return scores


def _joined(best: Sequence[RunningBest]) -> Best:
    results = [running.result() for running in best]
    return Best(torch.cat([found.scores for found in results]), torch.cat([found.positions for found in results]))


def _changes(vectors: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    changes: torch.Tensor = torch.linalg.vector_norm(vectors - rounded, dim=1)
    return changes


def _check_arguments(queries: NDArray[np.float32], corpus: NDArray[np.float32], *, k: int, block_size: int) -> None:
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"Queries of shape {queries.shape} cannot be compared with a corpus of shape {corpus.shape}: both must be "
            "(num_texts, dim) with the same dim. Encode both with the same model and the same truncate_dim."
        )
    if len(queries) == 0:
        raise ValueError("There are no queries. Give at least one.")
    if not 1 <= k <= len(corpus):
        raise ValueError(f"k={k} is out of range for a corpus of {len(corpus)}. Choose k from 1 to {len(corpus)}.")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}.")


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
    device: str | torch.device,
) -> Iterator[_Block]:
    """Yield blocks of rows on the device, checked, and scaled to unit length if wanted."""
    for start in range(0, len(vectors), size):
        rows = torch.tensor(vectors[start : start + size], dtype=torch.float32, device=device)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        _check_norms(norms.squeeze(1), start, kind=kind, ids=ids)
        yield _padded(start, rows.div_(norms) if unit else rows)


def _padded(start: int, rows: torch.Tensor) -> _Block:
    missing = -len(rows) % _TILE
    return _Block(start, len(rows), torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows)


def _check_norms(norms: torch.Tensor, start: int, *, kind: str, ids: Sequence[str] | None) -> None:
    """Refuse vectors that are zero or not finite; two finite norms give a finite score."""
    bad = ((norms == 0) | ~norms.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return
    names = [repr(ids[start + i]) if ids is not None else f"row {start + i}" for i in bad[:5]]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise ValueError(
        f"The {kind} vectors of {', '.join(names)}{more} are zero or not finite (NaN, infinity), so nothing can be compared "
        "with them. Look for empty texts, and for a model that overflows in float16: load it in float32 or bfloat16."
    )
