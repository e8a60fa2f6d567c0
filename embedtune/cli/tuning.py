"""``embedtune tune``: from documents, the sample or a dataset to a retriever and its verdict, in steps that can go on."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import embedtune as et
from embedtune.cli.shell import say
from embedtune.dataset import RetrievalDataset
from embedtune.folder import COMMAND, DATA, QUESTIONS, read_command
from embedtune.llms.prices import budget_of
from embedtune.storage import replace_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.llms.prices import Estimate
    from embedtune.llms.protocol import LLM
    from embedtune.training.tune import TuningRun
    from embedtune.types import Chunk, Question

_PROVIDERS = {"anthropic": "AnthropicLLM", "openai": "OpenAILLM", "local": "TransformersLLM"}


@dataclass(frozen=True)
class Order:
    """What ``embedtune tune`` was asked for; the attributes are its options."""

    documents: tuple[Path, ...]
    sample: bool
    data: Path | None
    model: str
    llm: str | None
    budget: float | None
    per_chunk: int
    max_tokens: int
    language: str
    batch: bool
    folds: int
    test_split: str | None
    epochs: float | None
    seed: int
    output: Path


@dataclass(frozen=True)
class Material:
    """What an order starts from, read but not yet paid for.

    Attributes:
        order: The order.
        model: The model to tune.
        chunks: The chunks of the documents; none where a dataset was given.
        data: The dataset, where no questions have to be generated.
        llm: The language model, where they have to be.
        estimate: What it will take.
    """

    order: Order
    model: SentenceTransformer
    chunks: Sequence[Chunk]
    data: RetrievalDataset | None = None
    llm: LLM | None = None
    estimate: Estimate | None = None

    @property
    def plan(self) -> dict[str, Any]:
        """What the result depends on, to notice that a folder holds another run."""
        order = self.order
        texts: Any = [[one.id, one.text] for one in self.chunks]
        if self.data is not None and not self.chunks:
            texts = [self.data.corpus_texts, self.data.query_texts]
        return {
            "model": order.model,
            "documents": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            "llm": order.llm,
            "budget": order.budget,
            "per_chunk": order.per_chunk,
            "max_tokens": order.max_tokens,
            "language": order.language,
            "folds": order.folds,
            "test_split": order.test_split,
            "epochs": order.epochs,
            "seed": order.seed,
        }


def language_model(name: str) -> LLM:
    """Return the language model that ``provider:model`` names."""
    provider, _, model = name.partition(":")
    if provider not in _PROVIDERS or not model:
        raise typer.BadParameter(
            f"{name!r} is not a provider and a model. Write for instance anthropic:claude-haiku-4-5; the providers are "
            f"{', '.join(_PROVIDERS)}.",
            param_hint="--llm",
        )
    llm: LLM = getattr(et, _PROVIDERS[provider])(model)
    return llm


def order_of(params: Mapping[str, Any]) -> Order:
    """Return the order that the options of a command make, by their names."""
    given = {one.name: params[one.name] for one in fields(Order)}
    return Order(**given | {"documents": tuple(params["documents"] or ())})


def check(order: Order) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    given = [bool(order.documents), order.sample, order.data is not None]
    if sum(given) != 1:
        raise typer.BadParameter(
            "Name documents, or a dataset with --data, or the handbook of the package with --sample: one of them."
        )
    if order.documents and order.llm is None:
        raise typer.BadParameter(
            "Documents need a language model that asks about them, for instance --llm anthropic:claude-haiku-4-5. If you have questions "
            "already, build a dataset in Python, and pass its folder with --data.",
            param_hint="--llm",
        )
    if not order.documents and (order.llm is not None or order.budget is not None):
        raise typer.BadParameter("--llm and --budget are for documents: --sample and --data have their questions.")


def read(order: Order) -> Material:
    """Read and count, without writing or sending anything."""
    if order.data is not None:
        return Material(order, et.load_model(order.model), (), RetrievalDataset.load_from_disk(order.data))
    if order.sample:
        model, sample = et.load_model(order.model), et.load_sample()
        chunks = et.chunk_documents(sample.documents, max_tokens=order.max_tokens, tokenizer=model)
        return Material(order, model, chunks, _dataset(order, chunks, sample.questions_for(chunks)))
    llm = language_model(order.llm or "")
    budget_of(llm, order.budget, spent=0)  # refuses one that cannot be kept
    model = et.load_model(order.model)
    documents = et.read_documents(order.documents[0] if len(order.documents) == 1 else order.documents)
    chunks = et.chunk_documents(documents, max_tokens=order.max_tokens, tokenizer=model)
    estimate = et.estimate_cost(chunks, llm, per_chunk=order.per_chunk, language=order.language)
    return Material(order, model, chunks, None, llm, estimate)


def quote_rows(material: Material) -> dict[str, str]:
    """Return what a run will do and cost, as labels and texts."""
    order, facts = material.order, quote_facts(material)
    judged = f"the split {order.test_split}" if order.test_split else f"{order.folds} folds"
    rows = {"Documents": f"{facts['num_documents']:,} in {facts['num_chunks']:,} chunks"}
    if material.estimate is None:
        rows["Questions"] = f"{facts['num_questions']:,}, which are there already: nothing is sent or paid"
    else:
        dollars = "price unknown" if facts["usd"] is None else f"about ${facts['usd']:.2f}"
        limit = "without a limit" if order.budget is None else f"at most ${order.budget:.2f}"
        rows["Questions"] = f"up to {facts['num_questions']:,}, written by {order.llm}, which is sent the chunks"
        rows["Price"] = (
            f"{dollars}, {limit}: {facts['num_requests']:,} requests, {facts['input_tokens']:,} tokens in, "
            f"{facts['output_tokens']:,} out"
        )
        if facts["usd"] and order.budget is not None and facts["usd"] > order.budget:
            share = order.budget / facts["usd"]
            rows["But"] = f"the budget is enough for about {share:.0%} of the chunks; the others get no questions"
    rows["Training"] = f"{order.model}, judged by {judged}"
    rows["Output"] = str(order.output)
    return rows


def quote_facts(material: Material) -> dict[str, Any]:
    """Return what a run will do and cost, for programs; dollars are None if the price is unknown."""
    order, data, estimate = material.order, material.data, material.estimate
    chunks = {chunk.document_id for chunk in material.chunks}
    facts: dict[str, Any] = {
        "num_documents": len(chunks) if data is None else len(set(data.corpus["document_id"][:])),
        "num_chunks": len(material.chunks) if data is None else len(data.corpus),
        "num_questions": len(material.chunks) * order.per_chunk if data is None else len(data.queries),
        "num_requests": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "usd": 0.0,
    }
    if estimate is not None:
        facts |= {name: getattr(estimate, name) for name in ("num_requests", "input_tokens", "output_tokens")}
        facts["usd"] = estimate.batch_usd if order.batch else estimate.live_usd
    return facts | {"budget_usd": order.budget, "output": str(order.output)}


def resumed(material: Material) -> Material:
    """Return the material with the questions that an earlier call stored, if there was one.

    Raises:
        ValueError: If the folder holds a run with other options.
    """
    folder = material.order.output
    if not (folder / COMMAND).exists():
        return material
    known = read_command(folder)
    if other := [name.replace("_", "-") for name, value in material.plan.items() if known.get(name) != value]:
        raise ValueError(
            f"{folder} holds a run with other {', '.join(other)}. Choose another --output. To start again in this one, delete "
            f"everything in it but {folder / QUESTIONS}, which holds the replies that were paid for."
        )
    return replace(material, data=RetrievalDataset.load_from_disk(folder / DATA), llm=None, estimate=None)


def run(material: Material) -> TuningRun:
    """Generate what is missing, and tune; the same call goes on where an earlier one stopped."""
    order = material.order
    data = _questions(material)
    logging.getLogger("embedtune.training.resilience.interruption").setLevel(
        logging.ERROR
    )  # says how to resume a trainer
    args = et.TuningArguments(str(order.output), seed=order.seed, disable_tqdm=not sys.stderr.isatty())
    if order.epochs is not None:
        args.num_train_epochs = order.epochs
    return et.tune(
        material.model, data, output_dir=order.output, args=args, num_folds=order.folds, test_split=order.test_split
    )


def _questions(material: Material) -> RetrievalDataset:
    """Return the dataset with its questions, which is stored in the folder of the run before training begins."""
    order, data = material.order, material.data
    if data is None and material.llm is not None:
        questions = et.generate_questions(
            material.chunks,
            material.llm,
            per_chunk=order.per_chunk,
            output_dir=order.output / QUESTIONS,
            mode="batch" if order.batch else "live",
            budget_usd=order.budget,
            language=order.language,
        )
        say(f"{questions}\n")
        data = _dataset(order, material.chunks, questions)
    if data is None:
        raise ValueError("There are no questions, and no language model to write them.")
    if not (order.output / COMMAND).exists():
        data.save_to_disk(order.output / DATA)
        replace_file(order.output / COMMAND, json.dumps(material.plan, indent=2) + "\n")
    return data


def _dataset(order: Order, chunks: Sequence[Chunk], questions: Sequence[Question]) -> RetrievalDataset:
    """Build the dataset. Where folds judge, every question is trained on in the end, and none may be called a test."""
    if order.test_split is not None:
        return et.build_dataset(chunks, questions)
    return et.build_dataset(chunks, questions, test_size=0, dev_size=0)
