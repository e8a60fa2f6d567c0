"""push_to_hub: upload a checked model with its evidence, and nothing else."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from sentence_transformers import SentenceTransformer

from embedtune.errors import refuse_name
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import Verdict
from embedtune.hub import Publication, check_access, list_files, upload_folder
from embedtune.models.export import as_tunable
from embedtune.models.lora import has_adapters
from embedtune.models.repository import quiet_transformers
from embedtune.models.selfcheck import check_model, same_vectors
from embedtune.publishing.card import Evidence, complete_card

if TYPE_CHECKING:
    from embedtune.dataset import RetrievalDataset

logger = logging.getLogger(__name__)

# The files that plain sentence-transformers reads, and the card with its charts.
_ALLOWED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "assets/*.png")
# Files of an older upload that a loader would read or run: old weights could win over the new ones.
_STALE = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.onnx", "*.py", "assets/verdict-*.png")


def push_to_hub(
    model: SentenceTransformer,
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
    """Upload a model that plain ``SentenceTransformer(repo_id)`` loads, with its evaluation in the model card.

    The model is saved with its LoRA merged, checked by `check_model`, uploaded in one commit, loaded back and compared. If
    the upload is interrupted, readers see the old files. Call it again: large files that arrived are not sent twice.

    Args:
        model: From `load_model` or trained. It is not changed.
        repo_id: ``"organisation/name"``; created if it does not exist.
        verdict: From `compare`; a list for several splits.
        data: The dataset it was trained on. The card shows counts and origins of its questions, but none of its text.
        private: Pass False to publish for everyone. An existing public repository is refused otherwise.
        adapters: Also upload the LoRA, in the folder ``adapters``, for later training.
        num_examples: Training questions to quote in the card, with their chunks.
        dry_run: Return what would be uploaded, without contacting the Hub. Print it to see every file and the whole card.
        verify: Download the uploaded model and compare its embeddings.
        token: For the Hub; by default that of ``hf auth login``.
        commit_message: Of the commit.

    Returns:
        The files, the card and the ``revision``.

    Raises:
        ValueError: If the model fails its check or needs files of other types, if ``verdict`` is not about ``data``, or if
            the repository is public and ``private`` is not False.
        RuntimeError: If the uploaded model computes other embeddings.

    Example:
        >>> import embedtune as et
        >>> publication = et.push_to_hub(et.load_model("minilm", device="cpu"), "my-org/handbook", dry_run=True)
        >>> "model.safetensors" in publication.files, publication.private
        (True, True)
    """
    verdicts = [verdict] if isinstance(verdict, Verdict) else list(verdict or [])
    _check_arguments(model, repo_id, verdicts, data, adapters=adapters, num_examples=num_examples)
    api = HfApi(token=token)
    if not dry_run:  # before saving, which may take minutes
        check_access(api, repo_id, repo_type="model", private=private)
    with tempfile.TemporaryDirectory(prefix="embedtune-push-") as name:
        folder = Path(name)
        card = _prepare(model, folder, repo_id, Evidence(verdicts, data, num_examples), adapters=adapters)
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
        _compare(model, repo_id, revision, token)
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
        expected = TopKEvaluator(data, verdict.before.split, k=verdict.before.k).fingerprint
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


def _compare(model: SentenceTransformer, repo_id: str, revision: str, token: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="embedtune-verify-") as cache, quiet_transformers():
        uploaded = SentenceTransformer(
            repo_id, revision=revision, token=token, cache_folder=cache, device=str(model.device)
        )
        training = model.training
        model.eval()
        try:
            check = same_vectors("uploaded = in memory", model, uploaded)
        finally:
            model.train(training)
    if not check.ok:
        raise RuntimeError(
            f"The model uploaded to {repo_id} at {revision} differs from the one in memory: {check.found}. Upload it again."
        )
    logger.info("%s at %s computes the same embeddings as the model in memory", repo_id, revision)
