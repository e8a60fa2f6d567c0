"""What a reader needs to trust and reproduce a result: the data, the model, the settings and the versions."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from embedtune.dataset.tables import named_mix
from embedtune.retrieval.encoders import model_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.record import VerdictRecord

Fact: TypeAlias = tuple[str, str]

_SPLIT_KINDS = {
    "document": "by document: no question about the documents asked about here was trained on",
    "question": "by question: other questions about the same chunks were trained on, so this holds for known chunks only",
    "given": "as given with the questions",
}
_PACKAGES = ("embedtune", "sentence-transformers", "transformers", "torch", "numpy")

# The settings that decide the result of a training run; the others are about the machine and paths.
_SETTINGS = (
    "seed",
    "data_seed",
    "loss",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "dropout",
    "frozen_layers",
    "num_negatives",
    "batch_sampler",
    "bf16",
    "fp16",
)


def data_facts(verdict: VerdictRecord, data: RetrievalDataset | None) -> list[Fact]:
    """Describe the corpus and the questions."""
    evaluation = verdict.before
    asked = np.unique([chunks[0] for chunks in evaluation.per_query["relevant"][:]], return_counts=True)[1]
    facts = [
        ("chunks in the corpus", f"{verdict.num_chunks:,}"),
        ("questions", f"{verdict.num_queries:,}, split {evaluation.split!r}"),
        ("chunks asked about", f"{len(asked):,}"),
        ("questions per such chunk", f"{asked.mean():.1f} on average, {asked.max():,} at most"),
    ]
    if data is None:
        return facts
    if mix := named_mix(data.styles_of(evaluation.per_query["query-id"][:])):
        facts.insert(2, ("styles of these questions", mix))
    lengths = [len(text) for text in data.corpus_texts.values()]
    facts.append(("characters per chunk", f"{median(lengths):,.0f} (median), {max(lengths):,} at most"))
    if "document_id" in data.corpus.column_names:
        facts.insert(0, ("documents", f"{len(set(data.corpus['document_id'][:])):,}"))
    facts.append(("split", _SPLIT_KINDS.get(data.split_by, data.split_by)))
    for split in data.splits:
        relevant = data.relevant(split)
        chunks = {chunk for ids in relevant.values() for chunk in ids}
        facts.append((f"split {split!r}", f"{len(relevant):,} questions about {len(chunks):,} chunks"))
    return facts


def model_facts(model: SentenceTransformer, texts: Iterable[str] | None) -> list[Fact]:
    """Describe the model, and how many tokens of the chunks it truncates."""
    facts = [
        ("model", model_name(model)),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("vectors", f"{model.get_embedding_dimension()} dimensions, compared by {model.similarity_fn_name}"),
        ("prompts", ", ".join(f"{name}={text!r}" for name, text in model.prompts.items() if text) or "none"),
    ]
    if model.max_seq_length is None or texts is None or not callable(getattr(model, "tokenizer", None)):
        return facts
    limit = model.max_seq_length
    encoded = model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    cut = np.maximum(lengths - limit, 0)
    return [
        *facts,
        ("maximum sequence length", f"{limit:,} tokens; the longest chunk has {lengths.max():,}"),
        ("truncated tokens", f"{cut.sum() / lengths.sum():.1%} of all tokens, in {np.count_nonzero(cut):,} chunks"),
    ]


def training_facts(trainer: SentenceTransformerTrainer) -> list[Fact]:
    """Describe a training run by the settings that decide its result."""
    settings: Mapping[str, Any] = trainer.args.to_dict()
    facts = [(name, str(settings[name])) for name in _SETTINGS if settings.get(name) is not None]
    seconds = next(
        (row["train_runtime"] for row in reversed(trainer.state.log_history) if "train_runtime" in row), None
    )
    if seconds is not None:
        facts.append(("time", f"{seconds:,.0f} s for {trainer.state.global_step:,} steps, evaluation included"))
    return [*facts, ("device", str(trainer.args.device))]


def version_facts() -> list[Fact]:
    """Return the versions of the software."""
    return [
        *((package, version(package)) for package in _PACKAGES),
        ("Python", platform.python_version()),
        ("platform", f"{platform.system()} {platform.machine()}"),
    ]


def recipe(verdict: VerdictRecord) -> str:
    """Return the code that reproduces the evaluation."""
    pinned = " ".join(f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES)
    first = verdict.before
    return (
        f"# pip install {pinned}\n"
        "import embedtune as et\n\n"
        'data = et.RetrievalDataset.load_from_disk("...")\n'
        f"evaluator = et.TopKEvaluator(data, split={first.split!r}, k={first.k!r})\n"
        f"evaluator.fingerprint  # must be '{first.fingerprint}'\n"
        "verdict = et.compare(evaluator.evaluate(...), evaluator.evaluate(...), "
        f"confidence_level={verdict.confidence_level})\n"
    )
