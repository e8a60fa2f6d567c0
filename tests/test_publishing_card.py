"""The model card: every number is the evaluation's, and no text of the training data is in it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from model_repositories import STATIC_LAYOUTS, static_repository
from test_trainer import make_data

import embedtune as et
from embedtune.dataset.card import question_origins
from embedtune.publishing.card import Evidence, complete_card
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def verdict(data, _shared_tiny_model):
    evaluator = et.TopKEvaluator(data, k=(1, 3))
    model = copy.deepcopy(_shared_tiny_model)
    results = [evaluator.evaluate(model, name=name) for name in ("base", "tuned")]
    return et.compare(*results, evaluator.evaluate(et.BM25()), num_resamples=200)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, tiny_model_folder):
    """A run that did not keep its last checkpoint: of two, that is the case where more is better, or where less is."""
    for greater_is_better in (False, True):
        args = TuningArguments(
            str(tmp_path_factory.mktemp("run")),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            metric_for_best_model="eval_dev_ndcg@10",
            greater_is_better=greater_is_better,
            eval_on_start=False,
            disable_tqdm=True,
            use_cpu=True,
            check_saved=False,
        )
        trainer = EmbeddingTrainer(et.load_model(tiny_model_folder, device="cpu"), args, data=data)
        trainer.train()
        if trainer.model.model_card_data.training_run.best_step < trainer.state.max_steps:
            break
    return trainer


def texts_of(data):
    return [*data.corpus_texts.values(), *data.query_texts.values()]


def card_of(model, folder, **evidence):
    model.save_pretrained(str(folder))
    return complete_card(folder, "me/tiny", model, Evidence(**evidence))


def test_no_training_text_is_in_the_card_of_a_run_its_checkpoints_or_what_it_saves(trained, data, tmp_path):
    trained.save_model(str(tmp_path / "model"))
    cards = [*tmp_path.rglob("README.md"), *Path(trained.args.output_dir).rglob("README.md")]
    assert len(cards) == 3
    for path in cards:
        text = path.read_text()
        assert "### Training Hyperparameters" in text, "the rest of the card is kept"
        assert not [t for t in texts_of(data) if t in text]
        assert ModelCard(text).data.widget[0]["source_sentence"].startswith("Which planet")


def test_a_plain_model_that_is_trained_keeps_the_texts_out_as_well(tiny_model, data, tmp_path):
    args = TuningArguments(str(tmp_path / "run"), max_steps=1, eval_strategy="no", save_strategy="no", use_cpu=True,
                           load_best_model_at_end=False, eval_on_start=False, disable_tqdm=True)  # fmt: skip
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    text = (tmp_path / "model" / "README.md").read_text()
    assert not [t for t in texts_of(data) if t in text]
    assert "encode_query" in text


def test_the_card_has_the_results_of_the_checkpoint_that_was_kept(trained):
    best = trained.model.model_card_data.training_run.best_step
    logged = next(log for log in trained.state.log_history if log["step"] == best and "eval_dev_ndcg@10" in log)
    (metrics,) = trained.model.model_card_data.eval_results_dict.values()
    assert metrics["dev_ndcg@10"] == logged["eval_dev_ndcg@10"] == trained.state.best_metric
    assert best < trained.state.max_steps, "or the test shows nothing"


def test_every_number_is_the_evaluations(tiny_model, verdict, tmp_path):
    text = card_of(tiny_model, tmp_path / "model", verdicts=[verdict])
    results = {}
    for result in (verdict.before, verdict.after, *verdict.baselines):
        result.save(tmp_path / "result.json")
        results[result.name] = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert verdict.sentence in text
    header, _, *rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in re.search(r"(?m)^\| metric(?:.*\n\|)*.*", text).group().splitlines()
    ]
    assert header == ["metric", "base", "tuned", "difference", "95% interval", "BM25"]
    ks = verdict.before.k
    best = [f"{kind}@{ks[-1]}" for kind in ("recall", "mrr", "ndcg", "map")]
    assert [row[0] for row in rows] == [*(f"accuracy@{k}" for k in ks), *best], "the others stand in model-index"
    for metric, base, tuned, difference, interval, bm25 in rows:
        expected = [results[name][metric] for name in ("base", "tuned", "BM25")]
        assert [base, tuned, bm25] == [f"{value:.3f}" for value in expected]
        change = verdict.metrics[metric]
        signed = [f"{value:+.3f}".replace("-0.000", "+0.000") for value in (change.difference, change.low, change.high)]
        assert [difference, *interval.split(" to ")] == signed
    index = {r.metric_type: r.metric_value for r in ModelCard(text).data.eval_results}
    assert index == results["tuned"], "unrounded"
    assert {r.task_type for r in ModelCard(text).data.eval_results} == {"information-retrieval"}


def test_the_card_says_how_much_of_a_text_the_model_reads(tiny_model, verdict, tmp_path):
    static = et.load_model(static_repository(tmp_path, next(iter(STATIC_LAYOUTS))), device="cpu")
    for model, said in ((tiny_model, f"truncated to {tiny_model.max_seq_length} tokens"), (static, "read whole")):
        assert f"Texts are {said}. Embeddings" in card_of(model, tmp_path / said, verdicts=[verdict])


def test_several_verdicts_stand_one_after_the_other(tiny_model, verdict, tmp_path):
    text = card_of(tiny_model, tmp_path, verdicts=[verdict, verdict])
    assert text.count(verdict.sentence) == 2


def test_evidence_is_replaced_not_repeated(tiny_model, verdict, tmp_path):
    first = card_of(tiny_model, tmp_path, verdicts=[verdict])
    assert complete_card(tmp_path, "me/tiny", tiny_model, Evidence([verdict])) == first
    assert first.index("Does it retrieve better?") < first.index("## Model Details")


def test_training_is_told_with_its_time_and_machine(trained, data, tmp_path):
    text = card_of(trained.model, tmp_path, data=data)
    run = trained.model.model_card_data.training_run
    assert f"{run.seconds / 60:.1f} minutes, including evaluations, on 1 x cpu" in text
    assert f"the checkpoint of step {run.best_step} was kept" in text
    assert "in-batch" in text.lower() or "InBatchNegativesLoss" in text


def test_questions_are_told_by_counts_and_origins(data):
    rows = [{**row, "model": "claude" if i % 3 else "", "prompt_version": "7" if i % 3 else ""}
            for i, row in enumerate(data.queries)]  # fmt: skip
    asked = et.RetrievalDataset(
        corpus=data.corpus, queries=type(data.queries).from_list(rows), qrels=data.qrels, split_by="question"
    )
    assert question_origins(asked) == [
        "24 by `claude`, prompt version `7`",
        "12 of unknown origin (written by hand, or imported)",
    ]


def test_training_texts_are_shown_to_whoever_asks(tiny_model, data, tmp_path):
    assert not [t for t in texts_of(data) if t in card_of(tiny_model, tmp_path, data=data)]
    shown = [t for t in texts_of(data) if t in card_of(tiny_model, tmp_path, data=data, num_examples=2)]
    assert len({t for t in shown if t in data.query_texts.values()}) == 2


@pytest.mark.parametrize("licence", ["apache-2.0", "cc-by-nc-4.0"])
def test_the_licence_of_the_base_is_inherited(tiny_model_folder, tmp_path, licence):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "README.md").write_text(f"---\nlicense: {licence}\n---\n\n# A model\n")
    model = et.load_model(base, device="cpu")
    model.model_card_data.add_tags("generated_from_trainer")
    text = card_of(model, tmp_path / "model")
    assert ModelCard(text).data.license == licence
    assert ("not for commercial use" in text) == (licence == "cc-by-nc-4.0")


def test_a_card_that_cannot_be_read_is_no_obstacle(tiny_model_folder, tmp_path):
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert et.load_model(base, device="cpu").model_card_data.license is None
