"""Distillation: a teacher scores the candidates of the training questions, and a smaller model learns to rank them alike."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.util import pairwise_cos_sim
from tqdm.auto import tqdm

from embedtune.bounds import finite, whole
from embedtune.dataset.views import table
from embedtune.retrieval.encoders import RememberingEncoder, encode_chunks, encode_questions
from embedtune.retrieval.fingerprint import model_fingerprint, reranker_fingerprint
from embedtune.retrieval.rerank import check_reranker, scores_of
from embedtune.storage import replace_file
from embedtune.training.llm_teacher import LLMTeacher
from embedtune.training.losses import InBatchNegativesLoss, RetrievalLoss
from embedtune.training.negatives.mining import MiningOptions, mine_hard_negatives

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from typing_extensions import Unpack

    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)

Teacher: TypeAlias = CrossEncoder | SentenceTransformer | LLMTeacher | Callable[[str, Sequence[str]], Sequence[float]]
"""What can score candidates."""

# Cosines are multiplied by this, as in the losses, so that their softmax is not flat.
_SCALE = 20.0
# Written at once: what an interruption costs.
_QUESTIONS_PER_BLOCK = 32
# Ids travel with the scores as 32-bit floats, which hold whole numbers up to here.
_MAX_IDS = 2**24

_Asked = tuple[str, tuple[str, ...]]


def score_candidates(
    teacher: Teacher,
    data: RetrievalDataset,
    *,
    model: SentenceTransformer,
    path: str | Path,
    split: str = "train",
    num_candidates: int = 8,
    seed: int = 0,
    show_progress_bar: bool | None = None,
    **options: Unpack[MiningOptions],
) -> Dataset:
    """Let a teacher score each training question's candidates, and return rows for `DistillationLoss`.

    The candidates of a question are its relevant chunk and the chunks that the model ranks highest beside it, without those that
    are known to answer it (`mine_hard_negatives`). There is no margin: what the teacher finds relevant gets a high score from it.

    Scores are kept in a folder, in blocks that are written whole. The same call continues where it was interrupted, and asks the
    teacher only about candidates that it has not seen. Several teachers may share a folder.

    Args:
        teacher: A ``CrossEncoder`` (its scores before the activation function), a SentenceTransformer (20 times the cosine, or the
            dot product where it compares by that), a language model (`LLMTeacher`, with a budget), or a function of a question and a list of texts that returns a score for
            each, as the logits of a softmax. A function is known by its name: give one that has changed another folder.
        data: Questions and chunks.
        model: Finds the candidates, usually the model to train.
        path: The folder of the scores.
        split: The split whose questions are used.
        num_candidates: How many candidates, the relevant chunk among them.
        seed: Seed of candidates that are drawn at random, where the corpus has too few.
        show_progress_bar: By default only in a terminal.
        **options: As in `mine_hard_negatives`; ``batch_size`` is the teacher's as well.

    Returns:
        Rows of ``anchor``, ``positive``, ``negative`` (or ``negative_1``, ...) and ``label``: the ids of the known answers, and the scores.
        Questions that a language model did not score are left out.

    Raises:
        TypeError: If the teacher is none of these.
        ValueError: If there are fewer than 2 candidates, or the teacher returns other than one finite score for each, or none.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> pairs = [("Press both buttons.", ["How do I restart?"]), ("Turn the key.", ["Which way does the key turn?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
        >>> model = et.load_model("minilm", device="cpu")
        >>> def teacher(question, texts):
        ...     return [float("key" in question and "key" in text) for text in texts]
        >>> rows = score_candidates(teacher, data, model=model, path=tempfile.mkdtemp(), num_candidates=2)
        >>> rows["label"][1][-2:]
        [1.0, 0.0]
    """
    num_negatives = whole("num_candidates", num_candidates, at_least=2) - 1
    mined = mine_hard_negatives(
        model, data, split=split, num_negatives=num_negatives, relative_margin=None, seed=seed, **options
    )
    columns = {name: mined[name][:] for name in mined.column_names}
    ids = [label[:-num_negatives] for label in columns.pop("label")]
    asked: list[_Asked] = [(row[0], row[1:]) for row in zip(*columns.values(), strict=True)]
    scores = _scored(
        teacher, asked, Path(path), batch_size=options.get("batch_size", 32), show_progress_bar=show_progress_bar
    )
    kept = [row for row, pair in enumerate(asked) if pair in scores]
    if not kept:
        raise ValueError(
            f"The teacher scored none of {len(asked)} questions. The warnings say why; raise budget_usd, or change the model."
        )
    columns = {name: [values[row] for row in kept] for name, values in columns.items()}
    ids, asked = [ids[row] for row in kept], [asked[row] for row in kept]
    names = {content: number for number, content in enumerate(dict.fromkeys(one for row in ids for one in row))}
    if len(names) > _MAX_IDS:
        raise ValueError(
            f"The questions have {len(names):,} answers, and at most {_MAX_IDS:,} are possible. Use fewer."
        )
    labels = [[float(names[one]) for one in row] + scores[pair] for row, pair in zip(ids, asked, strict=True)]
    return table(columns | {"label": labels})


class DistillationLoss(RetrievalLoss):
    r"""Rank each question's candidates as a teacher does, and its relevant chunk above the other chunks of the batch.

    The Kullback-Leibler divergence of the softmax over the candidates' scaled cosines from the softmax over the teacher's scores
    (sentence-transformers' ``DistillKLDivLoss``), plus `InBatchNegativesLoss` over the relevant chunks of the batch:
    :math:`\sum_j p_j (\log p_j - \log \mathrm{softmax}(s \cos(q, c))_j) + w L_{\text{in-batch}}` with
    :math:`p = \mathrm{softmax}(t / T)`. Listwise distillation is from Tamber et al. 2025 (https://arxiv.org/abs/2505.19274), who
    found that it improves retrievers that contrastive training alone makes worse. The weight of 1 is ours.

    Args:
        model: The model to train.
        scale: Multiplies similarities; the inverse of the temperature of the model to train.
        temperature: Divides the teacher's scores: above 1 for a teacher whose first candidate gets nearly all of the weight.
        in_batch_weight: The weight of the in-batch term; 0 leaves it out.

    Inputs:
        | Columns                                                       | Label                                           |
        |---------------------------------------------------------------|-------------------------------------------------|
        | ``anchor``, ``positive``, ``negative_1``, ..., ``negative_n`` | ids of the known answers, and ``n + 1`` scores  |

        `score_candidates` makes them.

    Example:
        ::

            import embedtune as et
            from embedtune.training.distill import DistillationLoss, score_candidates

            rows = score_candidates(teacher, data, model=model, path="out/teacher")
            trainer = et.EmbeddingTrainer(model, args, data=data, train_dataset=rows, loss=DistillationLoss)
            trainer.train()
    """

    uses_ids = True

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        scale: float = 20.0,
        temperature: float = 1.0,
        in_batch_weight: float = 1.0,
    ) -> None:
        super().__init__(model)
        self.scale: float = finite("scale", scale, above=0)
        self.temperature: float = finite("temperature", temperature, above=0)
        self.in_batch_weight: float = finite("in_batch_weight", in_batch_weight, at_least=0)
        self.listwise: DistillKLDivLoss = DistillKLDivLoss(
            model, similarity_fct=partial(_scaled, scale=scale), teacher_temperature=temperature
        )
        self.in_batch: InBatchNegativesLoss = InBatchNegativesLoss(model, scale=scale)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of questions, relevant chunks and other candidates, each of shape ``(batch_size, dim)``.

        Args:
            embeddings: One tensor per column.
            labels: Ids and scores of shape ``(batch_size, num_ids + num_candidates)``.

        Raises:
            ValueError: If the rows are not those of `score_candidates`.
        """
        num_candidates = len(embeddings) - 1
        if num_candidates < 2 or labels is None or labels.ndim != 2 or labels.shape[1] <= num_candidates:
            raise ValueError(
                "DistillationLoss reads candidates with a teacher's scores. Pass train_dataset=score_candidates(teacher, data, ...)."
            )
        ids, scores = labels[:, :-num_candidates].long(), labels[:, -num_candidates:]
        loss: Tensor = self.listwise.compute_loss_from_embeddings(embeddings, scores)
        if not self.in_batch_weight:
            return loss
        return loss + self.in_batch_weight * self.in_batch.compute_loss_from_embeddings(embeddings[:2], ids)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "temperature": self.temperature, "in_batch_weight": self.in_batch_weight}


def _scaled(questions: Tensor, chunks: Tensor, *, scale: float) -> Tensor:
    scores: Tensor = scale * pairwise_cos_sim(questions, chunks)
    return scores


def _scored(
    teacher: Teacher, asked: Sequence[_Asked], folder: Path, *, batch_size: int, show_progress_bar: bool | None
) -> dict[_Asked, list[float]]:
    """Return the teacher's scores of each question's candidates, from the folder where they are there; none for those it left out."""
    score, fingerprint = _scorer(teacher, batch_size)
    size = len(asked) if isinstance(teacher, LLMTeacher) else _QUESTIONS_PER_BLOCK  # its ledger keeps each reply
    key_of = {pair: _key(fingerprint, pair) for pair in asked}
    folder.mkdir(parents=True, exist_ok=True)
    known = _stored(folder)
    missing = [pair for pair, key in key_of.items() if key not in known]
    logger.info("%d of %d lists of candidates are scored already.", len(key_of) - len(missing), len(key_of))
    hidden = None if show_progress_bar is None else not show_progress_bar
    if isinstance(teacher, LLMTeacher):
        hidden = True  # its requests have a bar of their own
    with tqdm(total=len(missing), desc="Asking the teacher", leave=False, disable=hidden) as bar:
        for start in range(0, len(missing), size):
            block = missing[start : start + size]
            rows = zip(block, score(block), strict=True)
            found = {key_of[pair]: row for pair, row in rows if row is not None}
            if not found:
                continue
            replace_file(folder / f"scores-{next(iter(found))[:16]}.json", json.dumps(found) + "\n")
            known |= found
            bar.update(len(block))
    return {pair: known[key] for pair, key in key_of.items() if key in known}


def _stored(folder: Path) -> dict[str, list[float]]:
    known: dict[str, list[float]] = {}
    for path in sorted(folder.glob("scores-*.json")):
        try:
            known |= json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as err:
            raise ValueError(f"{path} is damaged ({err}). Delete it: the teacher is asked again.") from err
    return known


def _key(fingerprint: str, pair: _Asked) -> str:
    return hashlib.sha256(json.dumps([fingerprint, *pair]).encode()).hexdigest()


def _scorer(
    teacher: Teacher, batch_size: int
) -> tuple[Callable[[Sequence[_Asked]], Iterable[list[float] | None]], str]:
    """Return a function that scores a block of questions, and what names the teacher."""
    if isinstance(teacher, CrossEncoder):
        check_reranker(teacher)
        return partial(_by_cross_encoder, teacher, batch_size), reranker_fingerprint(teacher)
    if isinstance(teacher, SentenceTransformer):
        return partial(_by_vectors, RememberingEncoder(teacher, batch_size)), model_fingerprint(teacher)
    if isinstance(teacher, LLMTeacher):
        return teacher.scores, teacher.fingerprint
    if not callable(teacher):
        raise TypeError(
            f"teacher is a {type(teacher).__name__}. Pass a CrossEncoder, a SentenceTransformer, an LLMTeacher or a function of a question and a "
            "list of texts: load_model(name), CrossEncoder(name)."
        )
    name = f"{getattr(teacher, '__module__', '')}.{getattr(teacher, '__qualname__', type(teacher).__qualname__)}"
    return partial(_by_function, teacher), str(getattr(teacher, "fingerprint", name))


def _by_cross_encoder(teacher: CrossEncoder, batch_size: int, block: Sequence[_Asked]) -> Iterator[list[float]]:
    for question, texts in block:
        yield scores_of(teacher, question, texts, batch_size=batch_size)[0].tolist()


def _by_vectors(encoder: RememberingEncoder, block: Sequence[_Asked]) -> Iterator[list[float]]:
    distinct = list(dict.fromkeys(text for _, texts in block for text in texts))
    vectors = dict(zip(distinct, encode_chunks(encoder, distinct, ids=distinct), strict=True))
    scale = _SCALE if encoder.model.similarity_fn_name == "cosine" else 1.0
    questions = encode_questions(encoder, [question for question, _ in block])
    for question, (_, texts) in zip(questions, block, strict=True):
        yield (scale * np.stack([vectors[text] for text in texts]) @ question).tolist()


def _by_function(
    teacher: Callable[[str, Sequence[str]], Sequence[float]], block: Sequence[_Asked]
) -> Iterator[list[float]]:
    for question, texts in block:
        scores = np.asarray(teacher(question, list(texts)), dtype=np.float64)
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            raise ValueError(
                f"The teacher returned {scores.tolist()} for the question {question!r}, and {len(texts)} finite scores are needed: one "
                "for each text."
            )
        yield scores.tolist()
