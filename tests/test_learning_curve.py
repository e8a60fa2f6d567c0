"""learning_curve: nested parts of the training data, everything else as it was, and what it says about more data."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_trainer import make_data

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.learning_curve import learning_curve, part_of
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture(scope="module")
def data():
    return make_data(test_size=0.4, dev_size=0.1)


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "dropout": 0.0}
        return TuningArguments(str(tmp_path / "out"), disable_tqdm=True, use_cpu=True, **(settings | options))

    return make


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_parts_are_nested_and_hold_whole_chunks_and_leave_the_other_splits_alone(data):
    chunks = [
        {chunk for chunks in part_of(data, share, seed=4).relevant("train").values() for chunk in chunks}
        for share in (0.2, 0.5, 0.7, 1.0)
    ]
    assert [len(part) for part in chunks] == sorted({len(part) for part in chunks})
    for smaller, larger in itertools.pairwise(chunks):
        assert smaller < larger
    half = part_of(data, 0.5, seed=4)
    whole = data.relevant("train")
    assert half.relevant("train") == {q: c for q, c in whole.items() if c[0] in chunks[1]}
    assert half.relevant("test") == data.relevant("test")
    assert half.relevant("dev") == data.relevant("dev")
    assert half.corpus_texts == data.corpus_texts
    assert part_of(data, 1.0, seed=4).relevant("train") == whole
    assert part_of(data, 0.5, seed=5).relevant("train") != half.relevant("train")


def test_each_run_is_what_a_trainer_makes_of_that_part_and_the_model_stays_as_it_was(tiny_model, data, arguments):
    before = snapshot(tiny_model)
    settings = arguments(load_best_model_at_end=False)  # the base model may be the best on four dev questions
    curve = learning_curve(tiny_model, data, fractions=(1.0, 0.5), args=settings, k=(1, 3), seed=4)
    assert curve.fractions == (0.5, 1.0)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not tiny_model.training or all(p.requires_grad for p in tiny_model.parameters())

    evaluator = TopKEvaluator(data, "test", k=(1, 3))
    assert curve.base.metrics == evaluator.evaluate(tiny_model).metrics
    EmbeddingTrainer(tiny_model, settings, data=part_of(data, 0.5, seed=4)).train()
    assert curve.runs[0].evaluations["test"].metrics == evaluator.evaluate(tiny_model).metrics
    assert curve.runs[0].evaluations["test"].metrics != curve.base.metrics


def test_the_number_of_rows_is_logged_before_the_first_step_and_is_in_the_result(
    tiny_model, data, arguments, caplog, tmp_path
):
    with caplog.at_level("INFO", logger="embedtune.training"):
        curve = learning_curve(tiny_model, data, args=arguments(num_train_epochs=3), fractions=(0.5, 1.0), k=(1, 3))
    rows = [3 * run.num_questions for run in curve.runs]
    assert [run.num_rows for run in curve.runs] == rows
    lines = [record.getMessage() for record in caplog.records if record.name == "embedtune.training.experiments.runs"]
    assert lines[2] == f"2 runs: {sum(rows)} rows."
    assert lines[3].startswith("50% finished")
    assert all(run.seconds > 0 for run in curve.runs)
    assert not (tmp_path / "out").exists(), "no model is kept"
    by_steps = learning_curve(tiny_model, data, args=arguments(max_steps=2), fractions=(1.0,), k=(1,))
    assert by_steps.runs[0].num_rows == 16


def test_what_it_says_follows_the_last_step_and_prints(tiny_model, data, arguments):
    curve = learning_curve(tiny_model, data, args=arguments(num_train_epochs=1), fractions=(0.5, 1.0), k=(1, 3))
    assert curve.last_step.before.name == "50%"
    opening = {"better": "More data still helps", "cannot tell": "Cannot tell", "worse": "More data made it worse"}
    assert curve.sentences[0].startswith(opening[curve.last_step.decision])
    assert "50% to 100%" in repr(curve)
    assert "ndcg@3" in repr(curve)
    assert curve._repr_html_().startswith("<p><strong>")
    one = learning_curve(tiny_model, data, args=arguments(max_steps=1), fractions=(1.0,), k=(1, 3))
    assert one.last_step is None
    assert "A single fraction does not show" in repr(one)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 1.5)])
def test_fractions_outside_of_0_to_1_are_refused(tiny_model, data, fractions):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        learning_curve(tiny_model, data, fractions=fractions)
