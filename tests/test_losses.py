"""The losses against torch's own functions and sentence-transformers' own losses, values and gradients."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn
from torch.nn import functional

from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, TripletMarginLoss

ONE_ANSWER_EACH = torch.arange(6)[:, None]


@pytest.fixture
def columns():
    """Three columns of vectors that take gradients."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 8, generator=generator, requires_grad=True) for _ in range(3)]


def value_and_gradients(function, columns):
    value = function(columns)
    return value, torch.autograd.grad(value, columns, allow_unused=True)


def assert_same(function, oracle, columns):
    value, gradients = value_and_gradients(function, columns)
    expected, expected_gradients = value_and_gradients(oracle, columns)
    torch.testing.assert_close(value, expected)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert other.abs().sum() > 0, "the oracle has no gradient: the comparison shows nothing"
            torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("margin", "p"), [(1.0, 2.0), (5.0, 1.0)])
def test_triplet_margin_loss_equals_torchs(tiny_model, columns, margin, p, swap):
    loss = TripletMarginLoss(tiny_model, margin=margin, p=p, swap=swap)
    oracle = nn.TripletMarginLoss(margin=margin, p=p, swap=swap)
    assert_same(lambda c: loss.compute_loss_from_embeddings(c, None), lambda c: oracle(*c), columns)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_cosine_embedding_loss_equals_torchs(tiny_model, columns, margin):
    loss = CosineEmbeddingLoss(tiny_model, margin=margin)
    labels = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    oracle = nn.CosineEmbeddingLoss(margin=margin)
    assert_same(lambda c: loss.compute_loss_from_embeddings(c, labels), lambda c: oracle(*c, labels), columns[:2])


@pytest.mark.parametrize("labels", [None, ONE_ANSWER_EACH])
@pytest.mark.parametrize("num_columns", [2, 3])
def test_in_batch_loss_equals_multiple_negatives_ranking_loss_where_nothing_is_masked(
    tiny_model, columns, labels, num_columns
):
    loss, oracle = InBatchNegativesLoss(tiny_model, scale=15), MultipleNegativesRankingLoss(tiny_model, scale=15)
    assert_same(
        lambda c: loss.compute_loss_from_embeddings(c, labels),
        lambda c: oracle.compute_loss_from_embeddings(c, None),
        columns[:num_columns],
    )


def naive_in_batch_loss(columns, labels, scale):
    """The definition, row by row."""
    questions, chunks = columns
    total = 0
    for i, question in enumerate(questions):
        logits = {
            j: scale * functional.cosine_similarity(question, chunk, dim=0)
            for j, chunk in enumerate(chunks)
            if j == i or labels[j][0] not in labels[i]
        }
        total = total - logits[i] + torch.logsumexp(torch.stack(list(logits.values())), 0)
    return total / len(questions)


def test_chunks_that_are_known_to_be_relevant_are_not_negatives(tiny_model, columns):
    labels = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [3, 0], [4, 4]])
    loss = InBatchNegativesLoss(tiny_model)
    assert_same(
        lambda c: loss.compute_loss_from_embeddings(c, labels),
        lambda c: naive_in_batch_loss(c, labels.tolist(), 20.0),
        columns[:2],
    )


def test_a_relevant_chunk_in_another_row_gets_no_gradient_from_the_question(tiny_model, columns):
    questions, chunks, _ = columns
    labels = torch.tensor([[0, 0], [1, 0], [2, 2], [3, 3], [4, 4], [5, 5]])
    loss = InBatchNegativesLoss(tiny_model)
    only_second = questions.detach().clone()
    # The gradient on chunk 0 comes from every question but the second, which chunk 0 answers too.
    masked = torch.autograd.grad(loss.compute_loss_from_embeddings([only_second, chunks], labels), chunks)[0]
    keep = [0, 2, 3, 4, 5]
    scores = functional.normalize(only_second, dim=1) @ functional.normalize(chunks, dim=1).T * 20
    without = functional.cross_entropy(scores[keep], torch.tensor(keep), reduction="sum") / 6
    torch.testing.assert_close(masked[0], torch.autograd.grad(without, chunks)[0][0])


def test_further_negative_columns_without_ids_are_never_masked(tiny_model, columns):
    labels = torch.zeros(6, 1, dtype=torch.long)  # one chunk answers everything: only the given negatives are left
    value = InBatchNegativesLoss(tiny_model).compute_loss_from_embeddings(columns, labels)
    questions, chunks, negatives = columns
    scores = 20 * torch.cat(
        [
            functional.cosine_similarity(questions, chunks)[:, None],
            functional.normalize(questions, dim=1) @ functional.normalize(negatives, dim=1).T,
        ],
        dim=1,
    )
    torch.testing.assert_close(value, functional.cross_entropy(scores, torch.zeros(6, dtype=torch.long)))


def test_a_further_negative_is_none_for_the_questions_that_it_answers(tiny_model, columns):
    questions, chunks, negatives = columns
    own, given = (
        torch.arange(6),
        torch.tensor([3, 9, 9, 0, 9, 3]),
    )  # rows 0 and 5 bring the chunk of row 3, row 3 that of 0
    labels = torch.stack([own, own, -1 - given], dim=1)
    value = InBatchNegativesLoss(tiny_model).compute_loss_from_embeddings(columns, labels)
    scores = 20 * functional.normalize(questions, dim=1) @ functional.normalize(torch.cat([chunks, negatives]), dim=1).T
    for question, column in ((3, 0), (3, 5), (0, 3)):
        scores[question, 6 + column] = -torch.inf
    torch.testing.assert_close(value, functional.cross_entropy(scores, torch.arange(6)))


def hardest_negative(questions, chunks, labels):
    similarity = functional.normalize(questions, dim=1) @ functional.normalize(chunks, dim=1).T
    for i in range(len(questions)):
        for j in range(len(chunks)):
            if labels[j, 0] in labels[i]:
                similarity[i, j] = -9
    return similarity.argmax(dim=1)


def test_the_hardest_triplet_takes_the_most_similar_chunk_that_is_not_relevant(tiny_model, columns):
    labels = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [3, 0], [4, 4]])
    loss = TripletMarginLoss(tiny_model, negatives="hardest")
    nearest = hardest_negative(*(c.detach() for c in columns[:2]), labels)
    oracle = nn.TripletMarginLoss()
    assert_same(
        lambda c: loss.compute_loss_from_embeddings(c, labels), lambda c: oracle(c[0], c[1], c[1][nearest]), columns[:2]
    )


def test_the_hardest_cosine_pairs_are_the_relevant_chunk_and_the_most_similar_other_one(tiny_model, columns):
    labels = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [3, 0], [4, 4]])
    loss = CosineEmbeddingLoss(tiny_model, negatives="hardest")
    nearest = hardest_negative(*(c.detach() for c in columns[:2]), labels)

    def oracle(c):
        right = nn.CosineEmbeddingLoss()(c[0], c[1], torch.ones(6))
        wrong = nn.CosineEmbeddingLoss()(c[0], c[1][nearest], -torch.ones(6))
        return (right + wrong) / 2

    assert_same(lambda c: loss.compute_loss_from_embeddings(c, labels), oracle, columns[:2])


@pytest.mark.parametrize("make", [TripletMarginLoss, CosineEmbeddingLoss])
def test_a_batch_about_one_chunk_has_no_hardest_negative_and_still_trains(tiny_model, columns, make):
    same = torch.zeros(6, 1, dtype=torch.long)
    value = make(tiny_model, negatives="hardest").compute_loss_from_embeddings(columns[:2], same)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(column.grad).all() for column in columns[:2])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (InBatchNegativesLoss, {"scale": 0}, "scale=0"),
        (TripletMarginLoss, {"margin": -1}, "margin=-1"),
        (TripletMarginLoss, {"negatives": "random"}, "negatives='random' is not one of"),
        (CosineEmbeddingLoss, {"margin": 2}, "margin=2 must be a cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_model, make, options, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_model, **options)


def test_the_wrong_columns_are_refused_with_the_view_that_fits(tiny_model, columns):
    with pytest.raises(ValueError, match="TripletMarginLoss takes 3 columns, but the dataset has 2"):
        TripletMarginLoss(tiny_model).compute_loss_from_embeddings(columns[:2], None)
    with pytest.raises(ValueError, match=r"data\.labelled_pairs\(split\)"):
        CosineEmbeddingLoss(tiny_model).compute_loss_from_embeddings(columns[:2], None)
    with pytest.raises(ValueError, match=r"data\.pairs\(split, with_ids=True\)"):
        TripletMarginLoss(tiny_model, negatives="hardest").compute_loss_from_embeddings(columns[:2], None)


def features(model, *texts):
    return [model.preprocess(list(column)) for column in texts]


@pytest.mark.parametrize("dims", [[32], [32, 16]])
def test_the_in_batch_loss_works_inside_matryoshka_loss(tiny_model, dims):
    tiny_model.eval()
    texts = (["open the pump", "cold blue door"], ["the valve is open", "the door is cold"])
    labels = torch.tensor([[0], [1]])
    wrapped = MatryoshkaLoss(tiny_model, InBatchNegativesLoss(tiny_model), dims)(features(tiny_model, *texts), labels)
    embeddings = [tiny_model(f)["sentence_embedding"] for f in features(tiny_model, *texts)]
    loss = InBatchNegativesLoss(tiny_model)
    parts = [loss.compute_loss_from_embeddings([e[:, :dim] for e in embeddings], labels) for dim in dims]
    wrapped = sum(wrapped.values()) if isinstance(wrapped, dict) else wrapped
    torch.testing.assert_close(wrapped, sum(parts))


@pytest.mark.parametrize("make", [InBatchNegativesLoss, TripletMarginLoss, CosineEmbeddingLoss])
def test_every_loss_reaches_every_layer_of_the_model(tiny_model, make):
    columns = (["open the pump", "cold door"], ["the valve is open", "the door is cold"], ["red wool", "old ship"])
    labels = {InBatchNegativesLoss: ONE_ANSWER_EACH[:2], CosineEmbeddingLoss: torch.tensor([1.0, -1.0])}.get(make)
    texts = columns if make is TripletMarginLoss else columns[:2]
    make(tiny_model)(features(tiny_model, *texts), labels).backward()
    silent = [n for n, p in tiny_model.named_parameters() if "pooler" not in n and (p.grad is None or not p.grad.any())]
    assert silent == []


@pytest.mark.parametrize("kind", ["in-batch", "triplet", "cosine"])
def test_training_stops_if_batch_after_batch_has_no_negative(tiny_model, columns, kind):
    loss = {
        "in-batch": lambda: InBatchNegativesLoss(tiny_model),
        "triplet": lambda: TripletMarginLoss(tiny_model, negatives="hardest"),
        "cosine": lambda: CosineEmbeddingLoss(tiny_model, negatives="hardest"),
    }[kind]()
    nothing, one_each = torch.zeros(6, 1, dtype=torch.long), ONE_ANSWER_EACH

    def batch(labels, rows=6):
        return loss.compute_loss_from_embeddings([column[:rows] for column in columns[:2]], labels[:rows])

    for _ in range(3):  # a short last batch about one chunk in each epoch is no reason
        batch(one_each)
        batch(nothing)
        batch(nothing)
    batch(one_each)
    with torch.no_grad():
        for _ in range(5):
            batch(nothing)
    for _ in range(5):
        batch(one_each, rows=1)
    batch(nothing)
    batch(nothing)
    with pytest.raises(ValueError, match="3 batches in a row every chunk is known to be relevant"):
        batch(nothing)
