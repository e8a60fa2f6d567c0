"""The model card: the one sentence-transformers writes, with the evaluation and its data in front."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard

from embedtune.dataset.card import describe_dataset
from embedtune.evaluation.summary import counts, facts, headline
from embedtune.retrieval.retriever_card import retriever_section, without_section

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.verdict import Verdict
    from embedtune.retrieval.learned import Saved

_BEGIN, _END = "<!-- embedtune: evidence -->", "<!-- embedtune: end of evidence -->"
_LICENCES = {
    "cc-by-nc-4.0": "not for commercial use; name the authors of the base model",
    "apache-2.0": "free for commercial use; keep the notices of the base model",
    "mit": "free for commercial use; keep the notice of the base model",
}


class Evidence(NamedTuple):
    """What a card reports beyond the model itself.

    Attributes:
        verdicts: One for each split or run.
        data: The dataset that the model was trained and tested on.
        num_examples: Training questions to quote, with their chunks.
        learned: What a retriever has beside the model, or None for a model alone.
    """

    verdicts: Sequence[Verdict] = ()
    data: RetrievalDataset | None = None
    num_examples: int = 0
    learned: Saved | None = None


def complete_card(folder: Path, repo_id: str, model: SentenceTransformer, evidence: Evidence) -> str:
    """Add the evidence to the card of a saved model, replacing older evidence, and return the card.

    Args:
        folder: Contains the ``README.md`` by sentence-transformers; charts are saved here.
        repo_id: The repository on the Hub.
        model: The model that was saved.
        evidence: What to report.
    """
    path = folder / "README.md"
    card = _read_card(path.read_text(encoding="utf-8") if path.exists() else "---\n---\n")
    _complete_metadata(card.data, repo_id, model, evidence.verdicts)
    sections = [
        *(_verdict_section(verdict, folder, number) for number, verdict in enumerate(evidence.verdicts, start=1)),
        retriever_section(repo_id, evidence.learned, has_chunks=False) if evidence.learned else "",
        _usage_section(model),
        _data_section(evidence),
        _training_section(model),
        _limits_section(evidence),
        _licence_section(card.data.get("license"), card.data.get("base_model")),
    ]
    card.text = _inserted(card.text, "\n\n".join(section for section in sections if section))
    path.write_text(str(card), encoding="utf-8")
    return str(card)


def _read_card(text: str) -> ModelCard:
    """Read a card, without its header if that is nested too deeply to be read."""
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except RecursionError:
        return ModelCard(re.sub(r"\A---.*?^---$", "---\n---", text, flags=re.DOTALL | re.MULTILINE))


def _names(licence: Any) -> list[str]:
    """Return the names in a card's licence, which may be one, several, or anything else."""
    return [part for part in (licence if isinstance(licence, list) else [licence]) if part and isinstance(part, str)]


def _complete_metadata(data: Any, repo_id: str, model: SentenceTransformer, verdicts: Sequence[Verdict]) -> None:
    name = repo_id.rpartition("/")[2]
    data.tags = list(dict.fromkeys([*(data.get("tags") or []), "embedtune"]))
    licences = _names(data.get("license")) or _names(model.model_card_data.license)
    data.license = licences if len(licences) > 1 else next(iter(licences), None)
    data.base_model = data.get("base_model") or model.model_card_data.base_model
    if verdicts:
        data.model_name = name
        data.eval_results = [result for verdict in verdicts for result in _eval_results(verdict, name)]
        data.metrics = list(dict.fromkeys(result.metric_type for result in data.eval_results))


def _eval_results(verdict: Verdict, name: str) -> list[EvalResult]:
    """Return the tuned model's unrounded metrics for the Hub's ``model-index``."""
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=name,
            dataset_name=f"{name}: questions of the split {verdict.after.split}",
            dataset_split=verdict.after.split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in verdict.after.metrics.items()
    ]


def _inserted(text: str, sections: str) -> str:
    """Insert the sections before the first heading below the title, or at the end."""
    block = f"{_BEGIN}\n{sections}\n{_END}\n\n"
    text = without_section(re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", "", text, flags=re.DOTALL))
    heading = re.search(r"^## ", text, flags=re.MULTILINE)
    place = heading.start() if heading else len(text)
    return text[:place].rstrip("\n") + "\n\n" + block + text[place:]


def _verdict_section(verdict: Verdict, folder: Path, number: int) -> str:
    ks = verdict.before.k
    shown = [*(f"accuracy@{k}" for k in ks), *(f"{kind}@{ks[-1]}" for kind in ("recall", "mrr", "ndcg", "map"))]
    rows = [
        [
            metric,
            f"{change.before:.3f}",
            f"**{change.after:.3f}**",
            _signed(change.difference),
            f"{_signed(change.low)} to {_signed(change.high)}",
            *(f"{baseline.metrics[metric]:.3f}" for baseline in verdict.baselines),
        ]
        for metric, change in ((metric, verdict.metrics[metric]) for metric in shown)
    ]
    names = [baseline.name for baseline in verdict.baselines]
    header = [
        "metric",
        verdict.before.name,
        verdict.after.name,
        "difference",
        f"{verdict.confidence_level:.0%} interval",
        *names,
    ]
    lines = [
        f"## Does it retrieve better? Questions of the split `{verdict.before.split}`",
        f"**{headline(verdict)}**",
        counts(verdict),
        _chart(verdict, folder, number),
        "\n".join(f"- *{label}*: {text}" for label, text in facts(verdict) if label != "Next"),
        verdict.sentence,
        *verdict.notes,
        _table(header, rows),
        f"{verdict.num_queries:,} questions over {verdict.num_chunks:,} chunks. The interval is for the difference between "
        f"{verdict.after.name} and {verdict.before.name}, from a paired bootstrap over chunks. `accuracy@k` is the hit rate: a "
        "relevant chunk is among the first k results.",
    ]
    return "\n\n".join(lines)


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero makes -0.0 positive


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("--:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _chart(verdict: Verdict, folder: Path, number: int) -> str:
    """Save the verdict's picture and return the line that shows it."""
    path = folder / "assets" / f"verdict-{number}.svg"
    path.parent.mkdir(exist_ok=True)
    verdict.plot(path)
    return f"![The share of questions that find their chunk among the first k](assets/{path.name})"


def _usage_section(model: SentenceTransformer) -> str:
    prompts = {name: text for name, text in model.prompts.items() if text}
    if prompts:
        listed = "\n".join(f"- `{name}`: `{text!r}`" for name, text in prompts.items())
        usage = (
            f"`encode_query` and `encode_document` add a prompt to each text, `encode` only if asked to:\n\n{listed}"
        )
    else:
        usage = "Questions and chunks are encoded without a prompt."
    limit = model.max_seq_length
    read = f"truncated to {limit} tokens" if limit is not None and math.isfinite(limit) else "read whole"
    return (
        f"## How to use the model\n\n{usage}\n\nTexts are {read}. Embeddings have "
        f"{model.get_embedding_dimension()} dimensions. See *Usage* below for the code."
    )


def _data_section(evidence: Evidence) -> str:
    if evidence.data is None:
        return ""
    return "\n\n".join(
        [
            "## How the questions were made",
            describe_dataset(evidence.data),
            *_examples(evidence.data, evidence.num_examples),
        ]
    )


def _examples(data: RetrievalDataset, number: int) -> list[str]:
    """Quote training questions with their chunks, if the user asked for it."""
    rows = [
        [data.query_texts[query], data.corpus_texts[chunks[0]]]
        for query, chunks in sorted(data.relevant("train").items())
    ]
    cells = [[text.replace("\n", "<br>") for text in row] for row in rows[:number]]
    return [_table(["question", "chunk"], cells)] if cells else []


def _training_section(model: SentenceTransformer) -> str:
    run = getattr(model.model_card_data, "training_run", None)
    if run is None:
        return ""
    kept = f"the checkpoint of step {run.best_step} was kept" if run.best_step else "the last step was kept"
    return (
        f"## How it was trained\n\n{run.seconds / 60:.1f} minutes, including evaluations, on {run.num_devices} x {run.device}, "
        f"with embedtune {version('embedtune')}; {kept}. Settings, losses and versions are listed below."
    )


def _limits_section(evidence: Evidence) -> str:
    lines = [
        "The metrics are for these documents and this kind of question. Other documents, other languages and longer texts were "
        "not evaluated.",
    ]
    if evidence.data is not None and any(
        evidence.data.queries["model"][:] if "model" in evidence.data.queries.column_names else []
    ):
        lines.append("Questions written by a language model resemble their chunks more than people's questions do.")
    if not evidence.verdicts:
        lines.append(f"This {'retriever' if evidence.learned else 'model'} was published without an evaluation.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines)])


def _licence_section(licence: str | list[str] | None, base: str | list[str] | None) -> str:
    names = _names(licence)
    if not names:
        return ""
    meaning = _LICENCES.get(names[0]) if len(names) == 1 else None
    origin = f", inherited from `{base}`" if isinstance(base, str) else ""
    return f"## Licence\n\n`{'`, `'.join(names)}`{origin}" + (f": {meaning}." if meaning else ".")
