"""A `datasets.Dataset` with a FAISS index, searched as it would be in production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer

from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from embedtune.types import Encoder

_EXACT = ("IndexFlat", "IndexFlatIP", "IndexFlatL2")
_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT; every other metric is a distance


@dataclass(frozen=True, repr=False)
class IndexedCorpus:
    """Find documents by the FAISS index of a dataset, which may be approximate, compressed, on GPUs or on disk.

    The vectors are those of the index, compared as it compares them: for the cosine, index vectors of unit length
    (``normalize_embeddings=True``). Only the questions are encoded. Where the index is not flat its search is approximate;
    so are the metrics then, and the result says so.

    Attributes:
        corpus: The dataset, after ``add_faiss_index`` or ``load_faiss_index``; its texts are those of the corpus that is
            evaluated, in any order.
        encoder: What made the vectors: a SentenceTransformer, or an `Encoder`.
        index_name: The index, named after its column unless told otherwise.
        batch_size: How many questions a SentenceTransformer encodes at once.

    Example:
        >>> from datasets import Dataset
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> documents = ["Press both buttons.", "Turn the key left."]
        >>> vectors = model.encode_document(documents, normalize_embeddings=True)
        >>> corpus = Dataset.from_dict({"text": documents, "vector": vectors})
        >>> corpus = corpus.add_faiss_index("vector")
        >>> IndexedCorpus(corpus, model, index_name="vector").rank(["which key?"], documents, 1)[0]
        array([[1]])
    """

    corpus: Dataset
    encoder: SentenceTransformer | Encoder
    index_name: str = "embeddings"
    batch_size: int = 32

    @property
    def approximate(self) -> bool:
        """Whether the index may overlook something."""
        return type(self._index).__name__.removeprefix("Gpu") not in _EXACT

    @property
    def fingerprint(self) -> str:
        """The kind of index and the encoder, as a result remembers them."""
        return f"IndexedCorpus({type(self._index).__name__}, {fingerprint_of(self.encoder)})"

    @property
    def _index(self) -> Any:
        return self.corpus.get_index(self.index_name).faiss_index

    def rank(
        self, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions in ``documents`` and their scores, both of shape ``(num_queries, k)``, best first.

        Ties among what the index returns are broken by position. Positions are -1 where it returned fewer than ``k``.

        Raises:
            ValueError: If the dataset's texts are not the documents, or the vectors are of another size than the index's.
        """
        model = self.encoder
        encoder = ModelEncoder(model, self.batch_size) if isinstance(model, SentenceTransformer) else model
        vectors = np.ascontiguousarray(encoder.encode_queries(queries), dtype=np.float32)
        if vectors.shape[1] != self._index.d:
            raise ValueError(
                f"The questions' vectors have {vectors.shape[1]} dimensions, and those of the index {self.index_name!r} have "
                f"{self._index.d}. Give the model that made the index."
            )
        position_of = self._positions(documents)
        found = self.corpus.search_batch(self.index_name, vectors, k=k)
        rows, scores = np.asarray(found.total_indices), np.asarray(found.total_scores, dtype=np.float32)
        scores = scores if self._index.metric_type == _INNER_PRODUCT else -scores
        positions = np.where(rows < 0, -1, position_of[rows])
        order = np.lexsort((positions, -scores, positions < 0), axis=1)
        return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _positions(self, documents: Sequence[str]) -> NDArray[np.int64]:
        """Return which document each row of the dataset is, by its text."""
        places: dict[str, list[int]] = {}
        for position in range(len(documents) - 1, -1, -1):
            places.setdefault(documents[position], []).append(position)
        texts = self.corpus["text"][:]
        found = [places[text].pop() if places.get(text) else -1 for text in texts]
        unknown = found.count(-1)
        if unknown or len(texts) != len(documents):
            raise ValueError(
                f"The index is not one of this corpus: it has {len(texts)} texts, of which {unknown} are not among the "
                f"{len(documents)} documents. Index the corpus as it is now, data.corpus for instance."
            )
        return np.array(found)
