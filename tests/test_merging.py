from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_evaluator import build, made_up
from test_forgetting import shaken
from test_verdict import evaluate

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.training.experiments.merging import ALPHAS, merge_with_base, smallest_within_one_error

torch.set_num_threads(1)


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 0.9, 1])
def test_each_weight_is_on_the_line_between_the_two(tiny_model, alpha):
    tuned = shaken(tiny_model, 0.3)
    merged = merge_with_base(tuned, tiny_model, alpha=alpha).model
    base_weights, tuned_weights = tiny_model.state_dict(), tuned.state_dict()
    for name, weight in merged.state_dict().items():
        expected = alpha * tuned_weights[name].double() + (1 - alpha) * base_weights[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_ends_are_the_models_themselves_and_both_stay_as_they_are(tiny_model):
    tuned = shaken(tiny_model, 0.3)
    before = model_fingerprint(tuned), model_fingerprint(tiny_model)
    assert model_fingerprint(merge_with_base(tuned, tiny_model, alpha=1.0).model) == before[0]
    assert model_fingerprint(merge_with_base(tuned, tiny_model, alpha=0.0).model) == before[1]
    assert (model_fingerprint(tuned), model_fingerprint(tiny_model)) == before


def test_weights_of_half_precision_are_averaged_in_full_precision(tiny_model):
    tuned = shaken(tiny_model, 0.3).to(torch.bfloat16)
    base = copy.deepcopy(tiny_model).to(torch.bfloat16)
    merged = merge_with_base(tuned, base, alpha=0.5).model
    for name, weight in merged.state_dict().items():
        assert weight.dtype == torch.bfloat16
        expected = (tuned.state_dict()[name].float() + base.state_dict()[name].float()) / 2
        torch.testing.assert_close(weight, expected.to(torch.bfloat16), rtol=0.01, atol=1e-6)


def test_tied_weights_stay_tied(tiny_model):
    base = copy.deepcopy(tiny_model)
    layer = base.transformers_model.encoder.layer[0]
    layer.attention.self.key.weight = layer.attention.self.query.weight
    tuned = shaken(base, 0.3)
    merged = merge_with_base(tuned, base, alpha=0.5).model
    attention = merged.transformers_model.encoder.layer[0].attention.self
    assert attention.key.weight is attention.query.weight
    expected = (
        layer.attention.self.query.weight + tuned.transformers_model.encoder.layer[0].attention.self.key.weight
    ) / 2
    torch.testing.assert_close(attention.key.weight, expected)


def test_a_router_is_merged_route_by_route(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    def routed(query, document):
        return SentenceTransformer(modules=[Router.for_query_document(list(query), list(document))], device="cpu")

    base = routed(copy.deepcopy(tiny_model), copy.deepcopy(tiny_model))
    tuned = routed(shaken(tiny_model, 0.3), copy.deepcopy(tiny_model))
    merged = merge_with_base(tuned, base, alpha=0.5).model
    document = merged.encode_document(["the pump"]), base.encode_document(["the pump"])
    np.testing.assert_allclose(*document, atol=1e-6)
    assert not np.allclose(merged.encode_query(["the pump"]), base.encode_query(["the pump"]), atol=1e-3)


def test_auto_evaluates_each_tenth_and_takes_the_smallest_that_is_good_enough(tiny_model):
    tuned = shaken(tiny_model, 0.3)
    data = build(*made_up(num_queries=60), split="dev")
    merge = merge_with_base(tuned, tiny_model, data=data)
    assert tuple(merge.evaluations) == ALPHAS
    assert merge.alpha == smallest_within_one_error(merge.evaluations)
    evaluator = TopKEvaluator(data, "dev")
    assert evaluator.evaluate(merge.model).metrics == merge.evaluations[merge.alpha].metrics
    assert evaluator.evaluate(tuned).metrics == merge.evaluations[1.0].metrics
    assert merge_with_base(tuned, tiny_model, alpha=merge.alpha).evaluations == {}


def test_where_tuning_has_won_nothing_the_base_is_taken_and_said_so(tiny_model, caplog):
    assert merge_with_base(tiny_model, tiny_model, data=build(*made_up(), split="dev")).alpha == 0
    assert "the merged model equals the base model" in caplog.text


def ndcg(ranks):
    """nDCG@10 of questions with one relevant chunk."""
    return np.where(np.array(ranks) <= 10, 1 / np.log2(np.array(ranks) + 1), 0)


@pytest.mark.parametrize(
    ("best", "other", "within"),
    [
        ([2] * 20, [10] * 11 + [1] * 9, True),  # 0.3 standard errors below the best
        ([2] * 20, [10] * 14 + [1] * 6, False),  # 1.7 standard errors
        ([2, 3, 4, 5, 6], [3, 4, 5, 6, 7], False),  # 3 of the paired differences, 0.9 of unpaired results
    ],
)
def test_the_smallest_alpha_within_one_paired_standard_error_of_the_best_is_taken(best, other, within):
    lost = ndcg(best) - ndcg(other)
    assert lost.mean() > 0
    assert (lost.mean() <= lost.std(ddof=1) / np.sqrt(len(lost))) == within
    poor = [30] * len(best)
    results = {0.0: evaluate(poor), 0.5: evaluate(other), 1.0: evaluate(best)}
    assert smallest_within_one_error(results) == (0.5 if within else 1.0)


def test_questions_about_one_chunk_count_as_one_for_the_standard_error():
    best, other = [2] * 20, [10] * 14 + [1] * 6  # as above, but about two chunks only
    chunk_of = [0] * 14 + [1] * 6
    results = {0.5: evaluate(other, chunk_of=chunk_of), 1.0: evaluate(best, chunk_of=chunk_of)}
    assert smallest_within_one_error(results) == 0.5


def test_of_equal_results_the_smaller_alpha_is_taken():
    results = {0.0: evaluate([5] * 9), 0.5: evaluate([2] * 9), 1.0: evaluate([2] * 9)}
    assert smallest_within_one_error(results) == 0.5
    assert smallest_within_one_error({1.0: results[1.0]}) == 1.0


def test_an_unmerged_lora_is_refused(tiny_model):
    from embedtune.models.load import load_model

    with pytest.raises(ValueError, match=r"The tuned model has a LoRA that is not merged. Save the model"):
        merge_with_base(load_model(copy.deepcopy(tiny_model), lora=True), tiny_model, alpha=0.5)


def test_other_architectures_and_settings_are_refused(tiny_model):
    from sentence_transformers.sentence_transformer.modules import Dense

    with_head = copy.deepcopy(tiny_model)
    with_head.append(Dense(32, 8))
    with pytest.raises(
        ValueError, match=r"The architectures differ: 2 weights are in only one of the models, such as '2.linear.bias'"
    ):
        merge_with_base(with_head, tiny_model, alpha=0.5)
    other_head = copy.deepcopy(tiny_model)
    other_head.append(Dense(32, 4))
    with pytest.raises(ValueError, match=r"'2.linear.weight' has the shapes \(8, 32\) and \(4, 32\)"):
        merge_with_base(with_head, other_head, alpha=0.5)
    pooled = copy.deepcopy(tiny_model)
    pooled[1].pooling_mode = "cls"
    with pytest.raises(ValueError, match="because their modules, configurations or tokenizers differ"):
        merge_with_base(pooled, tiny_model, alpha=0.5)


def test_options_that_make_no_sense_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"alpha=1.5 must be from 0"):
        merge_with_base(tiny_model, tiny_model, alpha=1.5)
    with pytest.raises(ValueError, match="needs data, whose dev split chooses alpha"):
        merge_with_base(tiny_model, tiny_model)
    with pytest.raises(ValueError, match=r"'dev'.*\['test'\]"):
        merge_with_base(tiny_model, tiny_model, data=build(*made_up()))


def test_a_name_in_the_place_of_a_model_is_refused(tiny_model):
    with pytest.raises(TypeError, match=r"base is the name 'minilm', not a model. Pass et.load_model\('minilm'\)"):
        merge_with_base(tiny_model, "minilm")
