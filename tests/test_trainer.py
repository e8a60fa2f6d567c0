"""EmbeddingTrainer and TuningArguments: prompts, views, the best checkpoint, and what plain tools can do with it."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from contextlib import nullcontext
from typing import ClassVar
from unittest.mock import MagicMock

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from transformers import TrainerCallback

from embedtune.dataset import RetrievalDataset, build_dataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.training import saving
from embedtune.training.arguments import TuningArguments
from embedtune.training.dropout import dropout_within, set_dropout
from embedtune.training.guards import warn_about_cut_chunks
from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer
from embedtune.types import Chunk, Question

THINGS = ["pump", "valve", "sensor", "door", "filter", "battery", "cable", "crane", "lamp", "clock", "engine", "roof"]


def make_data(**options):
    chunks, questions = [], []
    for i, thing in enumerate(THINGS):
        text = f"check the {thing} and press {i} to open it"
        chunks.append(Chunk(f"{thing}#0", thing, text, 0, len(text)))
        for j, asked in enumerate(("how to open the", "what to press for the", "where to check the")):
            questions.append(Question(f"{thing}#0/{j}", f"{asked} {thing}", (f"{thing}#0",)))
    options = {"test_size": 0.17, "dev_size": 0.42, "seed": 3} | options
    return build_dataset(chunks, questions, **options)


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "disable_tqdm": True, "use_cpu": True}
        return TuningArguments(str(tmp_path / "out"), **(settings | options))

    return make


def batches(trainer):
    return list(trainer.get_train_dataloader())


@pytest.mark.parametrize("loss", ["in-batch", "triplet", "cosine"])
def test_training_lowers_each_loss_and_changes_the_model(tiny_model, data, arguments, loss):
    before = tiny_model.encode("open the pump")
    args = arguments(
        loss=loss, num_train_epochs=4, learning_rate=3e-3, logging_steps=1, load_best_model_at_end=False
    )  # which checkpoint a dozen dev questions prefer is another matter: it may be the base model
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert abs(tiny_model.encode("open the pump") - before).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("in-batch", ["anchor", "positive", "label"]),
        ("triplet", ["chunk", "question", "other_question"]),
        ("cosine", ["chunk", "question", "label"]),
    ],
)
def test_the_named_loss_is_given_its_view(tiny_model, data, arguments, name, columns):
    assert EmbeddingTrainer(tiny_model, arguments(loss=name), data=data).train_dataset.column_names == columns


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        (lambda m: TripletMarginLoss(m, negatives="hardest"), ["anchor", "positive", "label"]),
        (lambda m: CosineEmbeddingLoss(m, negatives="hardest"), ["anchor", "positive", "label"]),
        (lambda m: MatryoshkaLoss(m, InBatchNegativesLoss(m), [32, 16]), ["anchor", "positive", "label"]),
        (lambda m: MatryoshkaLoss(m, TripletMarginLoss(m), [32, 16]), ["chunk", "question", "other_question"]),
        (MultipleNegativesRankingLoss, ["anchor", "positive"]),
    ],
)
def test_a_loss_of_ones_own_is_given_the_view_it_was_made_for(tiny_model, data, arguments, loss, columns):
    for given in (loss, loss(tiny_model)):
        trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1), data=data, loss=given)
        assert trainer.train_dataset.column_names == columns
    trainer.train()


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("in-batch", {"anchor": "ask: ", "positive": "chunk: "}),
        ("triplet", {"chunk": "chunk: ", "question": "ask: ", "other_question": "ask: "}),
        ("cosine", {"chunk": "chunk: ", "question": "ask: "}),
    ],
)
def test_each_column_gets_the_prompt_that_search_will_use(tiny_model, data, arguments, name, prompts):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    trainer = EmbeddingTrainer(tiny_model, arguments(loss=name, encode_once=False), data=data)
    assert trainer.args.prompts == prompts
    for column, prompt in prompts.items():
        start = tiny_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = batches(trainer)[0][f"{column}_input_ids"]
        assert (ids[:, 1 : 1 + len(start)] == torch.tensor(start)).all()


def test_a_document_prompt_is_found_under_the_names_that_encode_document_knows(tiny_model, data, arguments):
    tiny_model.prompts = {"query": "ask: ", "passage": "p: "}
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data)
    assert trainer.args.prompts == {"anchor": "ask: ", "positive": "p: "}


def test_prompts_that_the_user_set_are_kept_and_the_users_arguments_are_not_changed(tiny_model, data, arguments):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    mine = arguments(prompts={"anchor": "Q "})
    assert EmbeddingTrainer(tiny_model, mine, data=data).args.prompts == {"anchor": "Q "}
    plain = arguments()
    EmbeddingTrainer(tiny_model, plain, data=data)
    assert plain.prompts is None or plain.prompts == {}
    assert plain.metric_for_best_model is None


def test_rows_from_elsewhere_have_questions_as_anchors(tiny_model, arguments):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    rows = Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "negative_1": ["c"]})
    trainer = EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows)
    assert trainer.args.prompts == {"anchor": "ask: ", "positive": "chunk: ", "negative_1": "chunk: "}


@pytest.mark.parametrize("column", ["chunk_id", "_id", "source"])
def test_columns_that_would_be_trained_on_as_texts_are_refused(tiny_model, arguments, column):
    rows = Dataset.from_dict({"anchor": ["a"], "positive": ["b"], column: ["c"]})
    with pytest.raises(ValueError, match=rf"train_dataset has the columns .* and \['{column}'\] would be trained on"):
        EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows)
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\]"):
        EmbeddingTrainer(tiny_model, arguments(), data=make_data(), eval_dataset={"b": rows})


def test_nothing_to_train_on_is_said(tiny_model, arguments):
    with pytest.raises(ValueError, match="nothing to train on"):
        EmbeddingTrainer(tiny_model, arguments())
    with pytest.raises(ValueError, match="needs a model"):
        EmbeddingTrainer(None, arguments())


def test_a_loss_name_that_does_not_exist_is_refused_with_the_names_that_do():
    with pytest.raises(ValueError, match=r"loss='mnrl' is not one of \('in-batch', 'triplet', 'cosine'\)"):
        TuningArguments("out", loss="mnrl")


# The best checkpoint


def spoil(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))


class SpoilAfter(TrainerCallback):
    """Ruins the model at the end of an epoch, as too high a learning rate does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if state.epoch >= self.epoch:
            spoil(model)


def test_the_checkpoint_that_retrieves_best_on_dev_is_kept(tiny_model, data, arguments, tmp_path):
    args = arguments(num_train_epochs=3, learning_rate=2e-3)
    trainer = EmbeddingTrainer(tiny_model, args, data=data, callbacks=[SpoilAfter(3)])
    trainer.train()
    assert trainer.args.metric_for_best_model == "eval_dev_ndcg@10"
    dev = [log["eval_dev_ndcg@10"] for log in trainer.state.log_history if "eval_dev_ndcg@10" in log]
    assert len(dev) == 4, "before training and after each of three epochs"
    assert TopKEvaluator(data, "dev").evaluate(tiny_model).metrics["ndcg@10"] == pytest.approx(max(dev[1:]))


def test_a_test_split_never_chooses_the_checkpoint(tiny_model, data, arguments):
    test = TopKEvaluator(data, "test")
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data, evaluator=test)
    trainer.train()
    assert trainer.args.metric_for_best_model == "eval_dev_ndcg@10"
    assert any("eval_test_ndcg@10" in log for log in trainer.state.log_history), "it is reported all the same"


def test_without_a_dev_split_the_last_checkpoint_is_kept_and_that_is_said(tiny_model, arguments, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = EmbeddingTrainer(
            tiny_model, arguments(), data=make_data(dev_size=0), evaluator=TopKEvaluator(make_data(), "test")
        )
    assert "no dev split" in caplog.text
    assert trainer.args.load_best_model_at_end is False
    trainer.train()


def test_a_base_model_that_no_checkpoint_beats_is_reported(tiny_model, data, arguments, caplog):
    EmbeddingTrainer(tiny_model, arguments(num_train_epochs=3, learning_rate=3e-3), data=data).train()
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data, callbacks=[SpoilAfter(1)])
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "No checkpoint is better than the base model: eval_dev_ndcg@10 was" in caplog.text


@pytest.mark.parametrize("gets_better", [False, True])
def test_the_warning_compares_losses_by_the_smaller_one_and_names_the_metric(
    tiny_model, arguments, caplog, gets_better
):
    rows = make_data(dev_size=0).pairs("train", with_ids=True)
    callbacks = [] if gets_better else [SpoilAfter(1)]
    args = arguments(num_train_epochs=2, learning_rate=3e-3 if gets_better else 0.0, dropout=0.0)
    trainer = EmbeddingTrainer(tiny_model, args, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    assert (trainer.state.best_metric < losses[0]) == gets_better
    assert ("No checkpoint is better than the base model: eval_loss was" in caplog.text) != gets_better
    assert "dev split" not in caplog.text


def test_a_chosen_metric_is_kept(tiny_model, data, arguments):
    args = arguments(metric_for_best_model="eval_dev_accuracy@1", greater_is_better=True)
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    trainer.train()
    assert trainer.args.metric_for_best_model == "eval_dev_accuracy@1"
    assert trainer.state.best_metric is not None


def test_an_eval_dataset_chooses_by_its_loss_if_there_is_no_dev_split(tiny_model, arguments):
    rows = make_data(dev_size=0).pairs("train", with_ids=True)
    trainer = EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows, eval_dataset=rows.select(range(5)))
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(
        min(log["eval_loss"] for log in trainer.state.log_history if log.get("eval_loss") and log["step"] > 0)
    )


@pytest.mark.parametrize("metric", ["ndcg@10", "dev_ndcg10", "loss", "eval_dev_ndcg@3x"])
def test_a_misspelt_metric_is_refused_with_those_that_there_are(tiny_model, data, arguments, metric):
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{metric}' is not one of .*'eval_dev_ndcg@10'"):
        EmbeddingTrainer(tiny_model, arguments(metric_for_best_model=metric), data=data)


def test_a_misspelt_metric_is_noticed_before_the_first_step_also_without_an_evaluation_at_the_start(
    tiny_model, arguments
):
    rows = make_data(dev_size=0)
    misspelt, right, judge = NoSuper(), NoSuper(), NoSuper()
    args = arguments(metric_for_best_model="mime", eval_on_start=False)
    trainer = EmbeddingTrainer(tiny_model, args, data=rows, evaluator=misspelt)
    with pytest.raises(ValueError, match=r"'mime' is not one of the metrics of an evaluation: \['eval_mine'\]"):
        trainer.train()
    assert trainer.state.global_step == 0
    args = arguments(metric_for_best_model="mine", greater_is_better=True, eval_on_start=False, max_steps=1)
    EmbeddingTrainer(tiny_model, args, data=rows, evaluator=right).train()
    judge.primary_metric = "mine"
    EmbeddingTrainer(tiny_model, args, data=rows, evaluator=judge).train()
    assert judge.calls == right.calls - 1, "an evaluator that names its metric is not run for the check"


class NoSuper(BaseEvaluator):
    """Does not call the __init__ of its superclass, which the stock trainer allows."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.calls += 1
        return {"mine": float(self.calls)}


def test_the_metrics_of_an_unknown_evaluator_are_checked_before_the_first_step(tiny_model, arguments, caplog):
    rows = make_data(dev_size=0)
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=rows, evaluator=NoSuper())
    assert trainer.args.load_best_model_at_end is False
    assert "NoSuper does not say which of its metrics counts" in caplog.text
    trainer = EmbeddingTrainer(tiny_model, arguments(metric_for_best_model="eval_mime"), data=rows, evaluator=NoSuper())
    with pytest.raises(ValueError, match=r"'eval_mime' is not one of the metrics of an evaluation: \['eval_mine'\]"):
        trainer.train()
    assert trainer.state.global_step == 0
    args = arguments(metric_for_best_model="eval_mine", greater_is_better=True)
    trainer = EmbeddingTrainer(tiny_model, args, data=rows, evaluator=NoSuper())
    trainer.train()
    assert trainer.state.best_metric == 2.0


def test_of_several_eval_datasets_none_chooses_unless_it_is_named(tiny_model, arguments, caplog):
    rows = make_data(dev_size=0).pairs("train", with_ids=True)
    parts = {"a": rows.select(range(8)), "b": rows.select(range(8, 16))}
    trainer = EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows, eval_dataset=parts)
    assert "['eval_a_loss', 'eval_b_loss'] are as good as each other" in caplog.text
    assert trainer.args.load_best_model_at_end is False
    trainer.train()
    args = arguments(metric_for_best_model="eval_b_loss", greater_is_better=False)
    trainer = EmbeddingTrainer(tiny_model, args, train_dataset=rows, eval_dataset=parts)
    trainer.train()
    losses = [log["eval_b_loss"] for log in trainer.state.log_history if "eval_b_loss" in log]
    assert trainer.state.best_metric == pytest.approx(min(losses[1:]))
    one = EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows, eval_dataset={"a": parts["a"]})
    assert one.args.metric_for_best_model == "eval_a_loss"


# What is refused before it costs anything


@pytest.mark.parametrize(
    "wrap", [lambda loss: loss, lambda loss: MatryoshkaLoss(loss.model, loss, [32, 16]), lambda loss: {"a": loss}]
)
def test_a_loss_that_was_made_with_another_model_is_refused(tiny_model, data, arguments, wrap):
    rows = data.pairs("train", with_ids=True)
    other = copy.deepcopy(tiny_model)
    for model, refused in ((other, True), (tiny_model, False)):
        loss = wrap(InBatchNegativesLoss(model))
        table = {"a": rows} if isinstance(loss, dict) else rows
        expected = pytest.raises(ValueError, match=r"made with another model object .* pass the class")
        with expected if refused else nullcontext():
            EmbeddingTrainer(tiny_model, arguments(), train_dataset=table, loss=loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"args": SentenceTransformerTrainingArguments("out")},
            "args are SentenceTransformerTrainingArguments. Pass Tuning",
        ),
        ({"args": make_data()}, r"by its name: EmbeddingTrainer\(model, args, data=data\)"),
        ({"loss": "triplet"}, r"TuningArguments\(loss='triplet'\)"),
        ({"model": torch.nn.Linear(2, 2)}, "model is a Linear. Load it as a SentenceTransformer"),
        ({"train_dataset": [{"anchor": "a", "positive": "b"}]}, r"train_dataset is a list. .*Dataset.from_list"),
        ({"train_dataset": make_data()}, r"train_dataset is a RetrievalDataset. Pass it as data=.*'train'"),
        ({"eval_dataset": {"a": make_data()}}, r"eval_dataset\['a'\] is a RetrievalDataset"),
        ({"evaluator": lambda model, **_: {}}, "evaluator is a function. Pass a BaseEvaluator"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_the_remedy(tiny_model, arguments, given, message):
    with pytest.raises(TypeError, match=message):
        EmbeddingTrainer(**{"model": tiny_model, "args": arguments(), "data": make_data()} | given)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", [float("nan"), float("inf"), -1, "2e-5", True]),
        ("num_train_epochs", [-1, 0, float("nan"), "3"]),
        ("per_device_train_batch_size", [0, -1, 2.5, True]),
        ("num_negatives", [0, -1, float("nan"), "4"]),
        ("dropout", [float("nan"), -1, 1, "0.1"]),
        ("frozen_layers", [float("nan"), -0.1, 1, True]),
        ("mini_batch_num_tokens", [0, -1, 2.5, "64"]),
        ("gradient_accumulation_steps", [0, -1, 1.5]),
        ("max_steps", [-2, 1.5]),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_its_name_also_when_it_is_set_later(
    tiny_model, data, arguments, name, values
):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}="):
            arguments(**{name: value})
        args = arguments()
        setattr(args, name, value)
        with pytest.raises((ValueError, TypeError), match=rf"^{name}="):
            EmbeddingTrainer(tiny_model, args, data=data)


def test_a_model_of_which_everything_is_frozen_is_refused(tiny_model, data, arguments):
    tiny_model.requires_grad_(False)
    with pytest.raises(ValueError, match="All parameters are frozen"):
        EmbeddingTrainer(tiny_model, arguments(), data=data).train()


def test_a_module_that_no_other_program_could_load_is_refused_before_the_first_step(tiny_model, data, arguments):
    class Local(Module):
        config_keys: ClassVar = []

        def forward(self, features):
            return features

        def save(self, output_path, *args, **kwargs):
            pass

    tiny_model.append(Local())
    with pytest.raises(ValueError, match=r"classes of its own \(test_trainer\..*Local\)"):
        EmbeddingTrainer(tiny_model, arguments(eval_on_start=False), data=data)


def test_an_epoch_without_a_batch_is_refused(tiny_model, data, arguments):
    args = arguments(per_device_train_batch_size=64, dataloader_drop_last=True, group_rows=False)
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    with pytest.raises(ValueError, match="fewer rows than the 64 of a batch"):
        trainer.train()


# Streams, transforms, searches


@pytest.mark.parametrize("loss", ["in-batch", "triplet"])
def test_a_stream_trains_as_its_table_in_the_same_order_does(tiny_model_folder, data, arguments, loss):
    rows = data.pairs("train", with_ids=True) if loss == "in-batch" else data.triplets("train", num_negatives=2)
    losses = {}
    for encode_once in (True, False):
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = arguments(
            loss=loss, max_steps=3, logging_steps=1, encode_once=encode_once, learning_rate=1e-3, save_strategy="no",
            load_best_model_at_end=False,
        )  # fmt: skip
        trainer = EmbeddingTrainer(
            model, args, train_dataset=rows.to_iterable_dataset(), eval_dataset=rows.to_iterable_dataset()
        )
        trainer.train()
        losses[encode_once] = [log.get("loss", log.get("eval_loss")) for log in trainer.state.log_history[:-1]]
    assert len(losses[True]) >= 4
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)


def test_rows_that_a_transform_makes_are_trained_on_and_looked_at(tiny_model, data, arguments):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    stored = data.pairs("train").rename_columns({"anchor": "asked_id", "positive": "found_id"})

    def made(batch):
        return {"anchor": batch["asked_id"], "positive": batch["found_id"]}

    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1), train_dataset=stored.with_transform(made))
    assert trainer.args.prompts == {"anchor": "ask: ", "positive": "chunk: "}
    trainer.train()
    lists = stored.with_transform(lambda batch: made(batch) | {"negative": [["a", "b"]] * len(batch["asked_id"])})
    with pytest.raises(ValueError, match=r"column 'negative' holds \['a', 'b'\] in its first row"):
        EmbeddingTrainer(tiny_model, arguments(), train_dataset=lists)


class Seen(TrainerCallback):
    """Remembers what a run was given, and what it has."""

    def __init__(self):
        self.runs = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        assert trainer.loss.model is model
        assert trainer.data_collator.preprocess_fn.__self__ is model
        self.runs.append(
            (args.loss, type(trainer.loss), args.num_negatives, len(trainer.train_dataset), args.dropout, probabilities(model),
             args.mini_batch_num_tokens, trainer.data_collator.max_tokens)
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_what_a_search_tries_has_an_effect(tiny_model_folder, data, arguments):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = [("triplet", 2, 0.25, 64), ("in-batch", 3, 0.5, 128)]

    def space(trial):
        loss, num_negatives, dropout, tokens = trials[trial.number]
        fixed = {"loss": loss, "num_negatives": num_negatives, "dropout": dropout, "mini_batch_num_tokens": tokens}
        return {
            name: trial.suggest_categorical(f"{name}{trial.number}", [value]) and value for name, value in fixed.items()
        }

    seen = Seen()
    seen.trainer = EmbeddingTrainer(
        None,
        arguments(max_steps=1, eval_on_start=False),
        data=data,
        model_init=lambda trial: SentenceTransformer(str(tiny_model_folder), device="cpu"),
        callbacks=[seen],
    )
    seen.trainer.hyperparameter_search(
        space, n_trials=2, direction="maximize", backend="optuna", compute_objective=lambda m: m["eval_dev_ndcg@10"]
    )
    rows = len(data.pairs("train"))
    assert seen.runs == [
        ("triplet", TripletMarginLoss, 2, 2 * rows, 0.25, {0.25}, 64, 64),
        ("in-batch", InBatchNegativesLoss, 3, rows, 0.5, {0.5}, 128, 128),
    ]


@pytest.mark.parametrize(("name", "value"), [("loss", "triplet"), ("num_negatives", 3), ("dropout", 7.0)])
def test_what_a_search_cannot_have_an_effect_on_is_refused(tiny_model_folder, data, arguments, name, value):
    trainer = EmbeddingTrainer(
        None,
        arguments(),
        train_dataset=data.pairs("train", with_ids=True),
        loss=InBatchNegativesLoss,
        model_init=lambda: SentenceTransformer(str(tiny_model_folder), device="cpu"),
    )
    setattr(trainer.args, name, value)
    with pytest.raises(ValueError, match=rf"{name}=.*(cannot be searched|must be)"):
        trainer.train()


# Trainers of one's own


class Weighted:
    """Overrides ``compute_loss`` with the stock trainer's own lines."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        features, labels = self.collect_features(inputs)
        loss = 0.5 * self.loss(features, labels)
        return (loss, {}) if return_outputs else loss


def test_a_trainer_that_overrides_compute_loss_gets_the_columns_of_the_stock_trainer(
    tiny_model, data, arguments, caplog
):
    class Mine(Weighted, EmbeddingTrainer):
        pass

    args = arguments(dropout=0.0, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    trainer = Mine(tiny_model, args, data=data)
    assert "because Mine overrides compute_loss" in caplog.text
    batch = batches(trainer)[0]
    assert {"anchor_input_ids", "positive_input_ids"} <= batch.keys()
    stock = SentenceTransformerTrainer(
        tiny_model, trainer.args, train_dataset=trainer.train_dataset, loss=InBatchNegativesLoss(tiny_model)
    )
    tiny_model.eval()
    torch.testing.assert_close(
        trainer.compute_loss(tiny_model, dict(batch)), 0.5 * stock.compute_loss(tiny_model, dict(batch))
    )
    with pytest.raises(ValueError, match="mini_batch_num_tokens=50 is not possible here, because Mine overrides"):
        Mine(tiny_model, arguments(mini_batch_num_tokens=50), data=data)


# What the stock trainer and plain sentence-transformers do with it


def test_training_is_the_same_as_with_the_stock_trainer(tiny_model_folder, data, tmp_path):
    """The subclass adds views and checks and encodes each text once, and changes the weights by rounding alone."""
    model = SentenceTransformer(str(tiny_model_folder), device="cpu")
    initial = torch.cat([p.detach().flatten() for p in model.parameters()])
    weights = []
    for trainer_class, args_class in (
        (EmbeddingTrainer, TuningArguments),
        (SentenceTransformerTrainer, SentenceTransformerTrainingArguments),
    ):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        set_dropout(model, 0)  # its masks would differ, because texts are encoded once
        args = args_class(
            str(tmp_path / trainer_class.__name__),
            max_steps=4,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            warmup_steps=0,
            disable_tqdm=True,
            use_cpu=True,
        )
        if trainer_class is EmbeddingTrainer:
            args.eval_on_start, args.frozen_layers, args.group_rows = False, 0.0, False
            trainer = trainer_class(
                model, args, data=RetrievalDataset(data.corpus, data.queries, {"train": data.qrels["train"]})
            )
        else:
            rows = data.pairs("train", with_ids=True)
            trainer = trainer_class(model, args, train_dataset=rows, loss=InBatchNegativesLoss(model))
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)
    assert (weights[0] - initial).abs().max() > 1e-3


def test_resuming_gives_the_same_weights_as_a_straight_run(tiny_model_folder, data, tmp_path):
    def run(folder, **train_options):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = TuningArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            save_total_limit=None,
            load_best_model_at_end=False,
            disable_tqdm=True,
            use_cpu=True,
        )
        EmbeddingTrainer(model, args, data=data).train(**train_options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = run("a")
    checkpoints = sorted((tmp_path / "a").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    resumed = run("b", resume_from_checkpoint=str(checkpoints[0]))
    assert len(checkpoints) == 2
    assert torch.equal(straight, resumed)


def test_saved_models_load_without_embedtune_and_give_the_same_vectors(tiny_model, data, arguments, tmp_path):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    expected = {}
    for loss in ("in-batch", "triplet", "cosine"):
        trainer = EmbeddingTrainer(tiny_model, arguments(loss=loss), data=data)
        trainer.train()
        trainer.save_model(str(tmp_path / loss))
        expected[loss] = tiny_model.encode_query("open the pump").tolist()
    program = (
        "import sys, json; sys.modules['embedtune'] = None; sys.modules['peft'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        "models = {path: SentenceTransformer(path, device='cpu') for path in sys.argv[1:]}\n"
        "print(json.dumps([model.encode_query('open the pump').tolist() for model in models.values()]))"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / loss) for loss in expected)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    vectors = torch.tensor(json.loads(output.strip().splitlines()[-1]))
    torch.testing.assert_close(vectors, torch.tensor(list(expected.values())), atol=1e-6, rtol=0)


def test_what_is_saved_holds_no_pickle(tiny_model, data, arguments, tmp_path):
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert not suffixes & {".bin", ".pt", ".pth", ".pkl"}


def test_callbacks_reach_the_training_loop(tiny_model, data, arguments):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = EmbeddingTrainer(tiny_model, arguments(num_train_epochs=5), data=data, callbacks=[Stop()])
    assert trainer.train().global_step == 1


def test_a_model_init_works_in_the_place_of_a_model(tiny_model_folder, data, arguments):
    trainer = EmbeddingTrainer(
        None,
        arguments(max_steps=1),
        data=data,
        model_init=lambda: SentenceTransformer(str(tiny_model_folder), device="cpu"),
    )
    assert trainer.train().global_step == 1


class Dropouts(TrainerCallback):
    """Remembers the dropout of the model that is trained."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(probabilities(model))


def probabilities(model):
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


def test_dropout_is_set_in_every_layer_for_this_training_alone(tiny_model, data, arguments):
    assert probabilities(tiny_model) == {0.1}
    trainers = [
        EmbeddingTrainer(tiny_model, arguments(max_steps=1, dropout=p), data=data, callbacks=[Dropouts()])
        for p in (0.3, 0.0, None)
    ]
    seen = []
    for trainer in trainers:
        trainer.train()
        seen += trainer.pop_callback(Dropouts).seen
        assert probabilities(tiny_model) == {0.1}
    assert seen == [{0.3}, {0.0}, {0.1}]


def test_a_training_that_fails_gives_the_dropout_back(tiny_model, data, arguments, monkeypatch):
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data)
    monkeypatch.setattr(trainer, "training_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert probabilities(tiny_model) == {0.1}


def test_without_dropout_a_batch_gives_one_loss(tiny_model, data, arguments):
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data)
    trainer.model.train()
    batch = batches(trainer)[0]
    with dropout_within(trainer.model, 0.0):
        first, second = (trainer.compute_loss(trainer.model, dict(batch)) for _ in range(2))
    assert first == second


# Chunks that the model would cut


def test_chunks_longer_than_the_model_reads_are_warned_of_before_training(tiny_model, arguments, caplog):
    tiny_model.max_seq_length = 8
    with caplog.at_level(logging.WARNING):
        EmbeddingTrainer(tiny_model, arguments(), data=make_data())
    assert "12 of 12 chunks are longer than the 8 tokens that the model reads" in caplog.text
    assert "max_tokens=6" in caplog.text


def test_the_share_of_cut_text_is_exact(tiny_model):
    data = RetrievalDataset.from_pairs([("open " * 20, "a"), ("open " * 4, "b")], test_size=0, dev_size=0)
    tiny_model.max_seq_length = 12
    # 22 and 6 tokens with [CLS] and [SEP]: 10 of 28 are cut.
    assert warn_about_cut_chunks(tiny_model, data) == pytest.approx(10 / 28)
    tiny_model.max_seq_length = 22
    assert warn_about_cut_chunks(tiny_model, data) == 0
    assert warn_about_cut_chunks(tiny_model, data, prompt="the ") == pytest.approx(1 / 30)


def test_chunks_that_fit_cause_no_warning(tiny_model, data, arguments, caplog):
    with caplog.at_level(logging.WARNING):
        EmbeddingTrainer(tiny_model, arguments(), data=data)
    assert "longer than" not in caplog.text


def test_a_saved_model_that_is_not_the_trained_one_is_an_error(tiny_model, data, arguments, tmp_path, monkeypatch):
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data)
    trainer.save_model(str(tmp_path / "right"))
    monkeypatch.setattr(
        type(tiny_model[1]), "get_config_dict", lambda self: {"embedding_dimension": 32, "pooling_mode": "cls"}
    )
    with pytest.raises(ValueError, match="saved = in memory"):
        trainer.save_model(str(tmp_path / "wrong"))
    trainer.args.check_saved = False
    trainer.save_model(str(tmp_path / "unchecked"))


@pytest.mark.parametrize(("unused", "compared"), [(0, False), (10**9, True)])
def test_a_saved_model_is_compared_if_the_gpu_has_room_for_both(
    tiny_model, tmp_path, monkeypatch, caplog, unused, compared
):
    checked = []
    monkeypatch.setattr(saving, "check_model", lambda model, folder: checked.append(folder) or MagicMock())
    monkeypatch.setattr(SentenceTransformer, "device", property(lambda model: torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10**9 + unused)  # kept since training
    saving.check_saved(tiny_model, tmp_path)
    assert checked == [tmp_path] * compared
    assert ("cuda:0 has no room" in caplog.text) != compared
