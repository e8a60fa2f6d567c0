"""The report: one self-contained HTML file, safe with hostile text, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.report.curve import Log, panels_of
from embedtune.evaluation.report.facts import data_facts, model_facts, recipe, training_facts, version_facts
from embedtune.evaluation.report.picture import MARKS
from embedtune.evaluation.report.questions import cases_of, select
from embedtune.evaluation.report.results import rank_histogram, runs_of
from embedtune.evaluation.summary import counts, facts
from embedtune.storage import replace_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.record import VerdictRecord

_SYMBOLS = {
    "ship it": "▲",
    "keep what you have": "▼",
}  # in addition to the colour, which not everybody sees and grey print loses


def write_report(
    verdict: VerdictRecord,
    path: str | Path,
    *,
    data: RetrievalDataset | None = None,
    trainer: SentenceTransformerTrainer | None = None,
    log_history: Log | None = None,
) -> Path:
    """Write the report (see ``Verdict.to_html``)."""
    if data is not None:
        _check_same(verdict, data)
    html = render(verdict, data=data, trainer=trainer, log_history=log_history)
    # Lone surrogates, in a name for instance, are not valid UTF-8.
    replace_file(path, html.encode("utf-8", "replace").decode())
    return Path(path)


def render(
    verdict: VerdictRecord,
    *,
    data: RetrievalDataset | None = None,
    trainer: SentenceTransformerTrainer | None = None,
    log_history: Log | None = None,
) -> str:
    """Return the report as a string."""
    runs = runs_of(verdict)
    texts = None if data is None else data.corpus_texts
    selection = select(cases_of(runs, texts), texts, runs[0].evaluation.k)
    if log_history is None:
        log_history = trainer.state.log_history if trainer is not None else []
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            verdict=verdict,
            symbol=_SYMBOLS.get(verdict.headline, "≈"),
            counts=counts(verdict),
            summary_facts=list(facts(verdict)),
            marks=MARKS,
            runs=runs,
            histogram=rank_histogram(runs),
            panels=panels_of(log_history, verdict.primary_metric),
            selection=selection,
            questions=selection.to_json(runs) | {"k": verdict.k},
            data_facts=data_facts(verdict, data),
            model_facts=model_facts(trainer.model, None if texts is None else texts.values())
            if trainer is not None
            else [],
            training_facts=training_facts(trainer) if trainer is not None else [],
            version_facts=version_facts(),
            hash_facts=[
                ("questions and corpus", verdict.before.fingerprint),
                *((run.name, run.evaluation.model) for run in runs if run.evaluation.model),
            ],
            recipe=recipe(verdict),
            style=style,
            script=script,
            policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
            "form-action 'none'",
        )
    )


def _check_same(verdict: VerdictRecord, data: RetrievalDataset) -> None:
    first = verdict.before
    fingerprint = TopKEvaluator(data, first.split, k=(1,)).fingerprint
    if fingerprint != first.fingerprint:
        raise ValueError(
            f"data is not the dataset that was evaluated: the questions, judgements or chunks of its split {first.split!r} differ "
            f"(fingerprints {fingerprint[:8]} and {first.fingerprint[:8]}). Pass the dataset that the evaluator was given."
        )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("embedtune.evaluation.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Unescaped, most scripts take half as many bytes; tojson still escapes <, >, & and '.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment


def _asset(name: str) -> str:
    return resources.files("embedtune.evaluation.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    """Return the source expression by which a content security policy allows exactly this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
