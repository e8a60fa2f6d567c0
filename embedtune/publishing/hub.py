"""push_to_hub: upload a checked retriever or model with its evidence, and nothing else."""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from sentence_transformers import SentenceTransformer

from embedtune.bounds import whole
from embedtune.errors import refuse_name
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import Verdict
from embedtune.hub import Publication, check_access, list_files, upload_folder
from embedtune.models.export import as_tunable
from embedtune.models.lora import has_adapters
from embedtune.models.repository import quiet_transformers
from embedtune.models.selfcheck import Check, check_model, same_vectors
from embedtune.publishing.card import Evidence, complete_card
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.retriever_files import write_learned
from embedtune.storage import temporary_folder
from embedtune.training.experiments.cross_validation import as_judged_by_folds
from embedtune.types import Chunk

if TYPE_CHECKING:
    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)

# The files that plain sentence-transformers reads, and the card with its charts.
_ALLOWED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "assets/*.svg")
# Files of an older upload that a loader would read or run: old weights could win over the new ones.
_STALE = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.onnx", "*.py", "assets/verdict-*.svg")

# Of the chunks that are searched for comparison, and how far their scores may be apart.
_NUM_COMPARED = 20
_MAX_DIFFERENCE = 1e-3


def push_to_hub(
    model: Retriever | SentenceTransformer,
    repo_id: str,
    *,
    verdict: Verdict | Sequence[Verdict] | None = None,
    data: RetrievalDataset | None = None,
    private: bool = True,
    adapters: bool = False,
    num_examples: int = 0,
    dry_run: bool = False,
    verify: bool = True,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> Publication:
    """Upload a retriever without its chunks, or a model alone, with its evaluation in the model card.

    ``SentenceTransformer(repo_id)`` loads the model, and ``Retriever.load(repo_id, chunks=chunks)`` the whole retriever. What
    was learned about words is uploaded as hashes; the texts of chunks and questions are not.

    The model is saved with its LoRA merged, checked by `check_model`, uploaded in one commit, loaded back and compared. If
    the upload is interrupted, readers see the old files. Call it again: large files that arrived are not sent twice.

    Args:
        model: A `Retriever`, or a model from `load_model` or training. It is not changed.
        repo_id: ``"organisation/name"``; created if it does not exist.
        verdict: From `compare`; a list for several splits.
        data: The dataset it was trained on. The card shows counts and origins of its questions, but none of its text.
        private: Pass False to publish for everyone. An existing public repository is refused otherwise.
        adapters: Also upload the LoRA, in the folder ``adapters``, for later training.
        num_examples: Training questions to quote in the card, with their chunks.
        dry_run: Return what would be uploaded, without contacting the Hub. Print it to see every file and the whole card.
        verify: Download what was uploaded and compare its embeddings and, for a retriever, its scores.
        token: For the Hub; by default that of ``hf auth login``.
        commit_message: Of the commit.

    Returns:
        The files, the card and the ``revision``.

    Raises:
        ValueError: If the model fails its check or needs files of other types, if ``verdict`` is not about ``data``, or if
            the repository is public and ``private`` is not False.
        RuntimeError: If what was uploaded computes other embeddings or scores.

    Example:
        >>> import embedtune as et
        >>> chunk = et.Chunk("pump.md#0", "pump.md", "Press both buttons to restart the pump.", 0, 39)
        >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), [chunk])
        >>> publication = et.push_to_hub(retriever, "my-org/handbook", dry_run=True)
        >>> "model.safetensors" in publication.files, "retriever.json" in publication.files, publication.private
        (True, True, True)
    """
    retriever = model if isinstance(model, Retriever) else None
    inner = model.model if isinstance(model, Retriever) else model
    verdicts = [verdict] if isinstance(verdict, Verdict) else list(verdict or [])
    _check_arguments(inner, repo_id, verdicts, data, adapters=adapters, num_examples=num_examples)
    api = HfApi(token=token)
    if not dry_run:  # before saving, which may take minutes
        check_access(api, repo_id, repo_type="model", private=private)
    with temporary_folder("push") as folder:
        evidence = Evidence(verdicts, data, num_examples, retriever.learned if retriever is not None else None)
        card = _prepare(inner, folder, repo_id, evidence, adapters=adapters)
        publication = Publication(repo_id, private, list_files(folder), card)
        if dry_run:
            return publication
        revision = upload_folder(
            api,
            repo_id,
            folder,
            repo_type="model",
            private=private,
            message=commit_message,
            delete_patterns=_STALE,
        )
    if verify:
        _compare(inner, retriever, repo_id, revision, token)
    return replace(publication, revision=revision)


def _check_arguments(
    model: SentenceTransformer,
    repo_id: str,
    verdicts: Sequence[Verdict],
    data: RetrievalDataset | None,
    *,
    adapters: bool,
    num_examples: int,
) -> None:
    refuse_name(model)
    whole("num_examples", num_examples, at_least=0)
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id={repo_id!r} must have the form 'organisation/name'.")
    if adapters and not has_adapters(model):
        raise ValueError(
            "adapters=True, but the model has no adapters. Load it with lora=True, or pass adapters=False."
        )
    if num_examples and (data is None or "train" not in data.splits):
        raise ValueError(f"num_examples={num_examples} quotes training questions: pass data= with a split 'train'.")
    for verdict in verdicts:
        if data is None:
            break
        split = verdict.before.split
        judged = as_judged_by_folds(data) if split == "folds" and split not in data.splits else data
        expected = TopKEvaluator(judged, split, k=verdict.before.k).fingerprint
        if verdict.before.fingerprint != expected:
            raise ValueError(
                f"The verdict on the split {verdict.before.split!r} is about other data: its questions, qrels or chunks differ. Pass "
                "the dataset it was evaluated on, or leave data out."
            )


def _prepare(model: SentenceTransformer, folder: Path, repo_id: str, evidence: Evidence, *, adapters: bool) -> str:
    """Save the model and its card to a folder, check both, and return the card."""
    _public_copy(model, repo_id).save_pretrained(str(folder))
    if not adapters:
        shutil.rmtree(folder / "adapters", ignore_errors=True)
    if evidence.learned is not None:
        write_learned(folder, evidence.learned)
    card = complete_card(folder, repo_id, model, evidence)
    others = [file for file in list_files(folder) if not any(fnmatch(file, pattern) for pattern in _ALLOWED)]
    if others:
        raise ValueError(
            f"The model needs {others}, but only {', '.join(_ALLOWED)} are uploaded, no pickles and no code. Build the model from "
            "sentence-transformers' modules."
        )
    check_model(model, folder=folder).raise_if_failed()
    return card


def _public_copy(model: SentenceTransformer, repo_id: str) -> SentenceTransformer:
    """Return the model with its own card data, which names the repository and stops the clock at the end of training."""
    public = as_tunable(model)
    public.model_card_data = copy.copy(model.model_card_data)
    public.model_card_data.register_model(public)
    public.model_card_data.set_model_id(repo_id)
    public.model_card_data.ir_model = True  # the usage example has encode_query and encode_document
    run = getattr(model.model_card_data, "training_run", None)
    if run is not None:
        public.model_card_data._training_start_time = time.time() - run.seconds
    return public


def _compare(
    model: SentenceTransformer, retriever: Retriever | None, repo_id: str, revision: str, token: str | None
) -> None:
    with temporary_folder("verify") as cache, quiet_transformers():
        uploaded = SentenceTransformer(
            repo_id,
            revision=revision,
            token=token,
            cache_folder=str(cache),
            device=str(model.device),
            trust_remote_code=False,
        )
        training = model.training
        model.eval()
        try:
            check = same_vectors("uploaded = in memory", model, uploaded)
            if check.ok and retriever is not None:
                folder = snapshot_download(repo_id, revision=revision, token=token, cache_dir=cache)
                check = _same_scores(retriever, folder, uploaded)
        finally:
            model.train(training)
    if not check.ok:
        kind = "model" if retriever is None else "retriever"
        raise RuntimeError(
            f"The {kind} uploaded to {repo_id} at {revision} differs from the one in memory: {check.found}. Upload it again."
        )
    logger.info("%s at %s computes what is computed in memory", repo_id, revision)


def _same_scores(retriever: Retriever, folder: str, uploaded: SentenceTransformer) -> Check:
    """Search a few chunks of the index with the retriever in memory and with the one that was uploaded."""
    index = retriever.index
    rows = np.unique(np.linspace(0, max(len(index) - 1, 0), min(_NUM_COMPARED, len(index)), dtype=np.int64)).tolist()
    texts = index.texts(rows)
    chunks = [Chunk(index.ids[row], "", text, 0, len(text)) for row, text in zip(rows, texts, strict=True)]
    here = Retriever.from_chunks(
        retriever.model,
        chunks,
        words=retriever.words,
        word_weight=retriever.word_weight,
        context=retriever.context,
        reranker=retriever.reranker,
        rerank_depth=retriever.rerank_depth,
    )
    try:
        there = Retriever.load(folder, uploaded, chunks=chunks)
    except (ValueError, FileNotFoundError) as err:
        return Check("uploaded = in memory", ok=False, found=str(err))
    found = [
        [{hit.id: hit.score for hit in hits} for hits in one.search_batch(texts, k=max(len(texts), 1))]
        for one in (here, there)
    ]
    differences = [abs(a.get(key, 0.0) - b.get(key, 0.0)) for a, b in zip(*found, strict=True) for key in a | b]
    ok = here.context == there.context and max(differences, default=0.0) < _MAX_DIFFERENCE
    return Check("uploaded = in memory", ok=ok, found=f"scores differ by {max(differences, default=0.0):.2g}")
