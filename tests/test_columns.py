"""What a training table's columns hold: prompts, routes, and contents that are refused."""

from __future__ import annotations

import copy

import pytest
from datasets import Dataset, IterableDataset, Value, concatenate_datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss

from embedtune.dataset import RetrievalDataset
from embedtune.dataset.columns import VIEW_ROLES
from embedtune.training.arguments import TuningArguments
from embedtune.training.columns import check_table, fill_columns
from embedtune.training.trainer import EmbeddingTrainer

PROMPTS = {"query": "ask: ", "document": "chunk: "}
THINGS = ["pump", "valve", "door", "lamp", "clock", "roof"]


@pytest.fixture(scope="module")
def data():
    pairs = [
        (f"check the {thing} and open it", [f"how to open the {thing}", f"where is the {thing}"]) for thing in THINGS
    ]
    return RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0.3)


@pytest.fixture
def prompted(tiny_model):
    tiny_model.prompts = dict(PROMPTS)
    return tiny_model


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        return TuningArguments(
            str(tmp_path / "out"), **{"use_cpu": True, "disable_tqdm": True, "max_steps": 1} | options
        )

    return make


def filled(model, args, *tables):
    args = copy.copy(args)
    fill_columns(args, model, *tables)
    return args


def copies(rows, folder):
    rows.to_parquet(folder / "a.parquet")
    rows.to_json(folder / "a.jsonl")
    rows.save_to_disk(folder / "disk")
    yield rows
    yield rows.shuffle(seed=0).select(range(3))
    yield rows.map(lambda row: row)
    yield concatenate_datasets([rows, rows])
    yield Dataset.from_parquet(str(folder / "a.parquet"), cache_dir=str(folder))
    yield Dataset.from_json(str(folder / "a.jsonl"), cache_dir=str(folder))
    yield Dataset.load_from_disk(folder / "disk")
    yield Dataset.from_pandas(rows.to_pandas())
    yield Dataset.from_list(rows.to_list())
    yield rows.to_iterable_dataset()


@pytest.mark.parametrize("view", VIEW_ROLES)
def test_a_copy_of_a_view_has_the_same_prompts_and_routes(prompted, arguments, data, tmp_path, view):
    router = SentenceTransformer(
        modules=[Router.for_query_document([prompted[0], prompted[1]], [prompted[0], prompted[1]])],
        prompts=PROMPTS,
        device="cpu",
    )
    rows = getattr(data, view)("train")
    columns = [column for column in rows.column_names if column != "label"]
    routes = dict(zip(columns, VIEW_ROLES[view], strict=True))
    for table in copies(rows, tmp_path):
        args = filled(router, arguments(), table)
        assert args.router_mapping == routes
        assert args.prompts == {column: PROMPTS[role] for column, role in routes.items()}


def test_the_name_of_a_configuration_says_nothing(prompted, arguments):
    rows = Dataset.from_dict({"anchor": ["how?"], "positive": ["press"], "negative": ["wait"]})
    rows.info.config_name = "triplets"
    assert filled(prompted, arguments(), rows).prompts == {
        "anchor": "ask: ",
        "positive": "chunk: ",
        "negative": "chunk: ",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"anchor": "ask: ", "positive": "chunk: ", "chunk": "chunk: ", "question": "ask: "}),
        ({"query": "Q ", "document": "D "}, {"anchor": "Q ", "positive": "D ", "chunk": "D ", "question": "Q "}),
        ({"query": "Q "}, {"anchor": "Q ", "question": "Q "}),
        ({"anchor": "Q "}, {"anchor": "Q "}),
        ({}, {}),
        ("all: ", "all: "),
    ],
)
def test_prompts_reach_the_columns_of_training_and_evaluation_tables(prompted, arguments, data, given, expected):
    tables = data.pairs("train"), data.labelled_pairs("dev")
    assert filled(prompted, arguments(prompts=given), *tables).prompts == expected


def test_prompts_of_several_tables_are_given_by_name(prompted, arguments, data):
    tables = {"one": data.pairs("train"), "two": data.triplets("train")}
    for given, expected in (
        ({"one": "all: ", "two": {"chunk": "D "}}, {"one": "all: ", "two": {"chunk": "D "}}),
        (
            {"one": {"query": "Q "}, "two": "D "},
            {"one": {"anchor": "Q ", "question": "Q ", "other_question": "Q "}, "two": "D "},
        ),
    ):
        assert filled(prompted, arguments(prompts=given), tables).prompts == expected


@pytest.mark.parametrize("given", [{"anchors": "Q "}, {"query": "Q ", "positive": "D "}, {"pairs": {"anchor": "Q "}}])
def test_prompts_of_columns_that_do_not_exist_are_refused_with_those_that_do(prompted, arguments, data, given):
    with pytest.raises(ValueError, match=r"is not a column. The columns are \['anchor', 'positive'\]"):
        filled(prompted, arguments(prompts=given), data.pairs("train"))


@pytest.mark.parametrize(
    ("columns", "loss"),
    [
        (("sentence1", "sentence2", "score"), CosineSimilarityLoss),
        (("query", "answer"), MultipleNegativesRankingLoss),
        (("question", "context"), MultipleNegativesRankingLoss),
    ],
)
def test_tables_of_sentence_transformers_are_taken(tiny_model, arguments, columns, loss):
    rows = Dataset.from_dict({column: [1.0, 0.0] if column == "score" else ["open", "wait"] for column in columns})
    assert EmbeddingTrainer(tiny_model, arguments(), train_dataset=rows, loss=loss(tiny_model)).args.prompts == {}


def test_unknown_columns_are_refused_only_if_the_model_encodes_questions_and_chunks_differently(prompted, arguments):
    rows = Dataset.from_dict({"sentence1": ["open"], "sentence2": ["wait"]})
    with pytest.raises(
        ValueError, match=r"Whether \['sentence1', 'sentence2'\] hold questions or chunks is not known.*anchor"
    ):
        filled(prompted, arguments(), rows)
    said = {"sentence1": "ask: ", "sentence2": "chunk: "}
    assert filled(prompted, arguments(prompts=said), rows).prompts == said
    assert filled(prompted, arguments(prompts={}), rows).prompts == {}
    prompted.prompts = {"query": "both: ", "document": "both: "}
    assert filled(prompted, arguments(), rows).prompts == {"sentence1": "both: ", "sentence2": "both: "}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("negative", [["a", "b"], ["c", "d"]], "'negative' holds List.*negative_1, negative_2"),
        ("negative", [1, 2], r"'negative' holds Value\('int64'\), and texts are expected"),
        ("negative", ["a", None], "row 1 has no value in column 'negative'"),
        ("label", [[1, 2], [1]], r"lists in column 'label' have different lengths, \[1, 2\]"),
        ("chunk_id", ["a", "b"], r"\['chunk_id'\] would be trained on as texts"),
        ("source", ["a", "b"], r"\['source'\] would be trained on as texts"),
    ],
)
def test_contents_that_would_be_misread_are_refused_by_column_and_row(column, values, message):
    rows = Dataset.from_dict({"anchor": ["how", "where"], "positive": ["open", "wait"], column: values})
    with pytest.raises(ValueError, match=message):
        check_table({"mine": rows}, name="train_dataset")


def test_a_missing_text_in_a_row_that_is_not_used_does_no_harm():
    rows = Dataset.from_dict({"anchor": ["how", None, "who"], "positive": ["open", "wait", "call"]})
    rows = rows.cast_column("anchor", Value("large_string"))
    check_table(rows.select([2, 0]), name="train_dataset")
    with pytest.raises(ValueError, match="row 2 has no value in column 'anchor'"):
        check_table(rows.select([2, 0, 1]), name="train_dataset")


def test_an_id_is_refused_in_a_table_of_unknown_columns():
    rows = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "query-id": ["c"]})
    with pytest.raises(ValueError, match=r"\['query-id'\] would be trained on"):
        check_table(rows, name="train_dataset")


def test_views_that_mean_different_things_do_not_mix(data):
    mined = Dataset.from_dict({"anchor": ["how"], "positive": ["open"], "negative": ["wait"]})
    with pytest.raises(ValueError, match="has no value in column"):
        check_table(concatenate_datasets([mined, data.triplets("train")]), name="train_dataset")


@pytest.mark.parametrize("options", [{}, {"encode_once": False}])
def test_a_table_given_to_evaluate_is_checked_and_gets_its_prompts(prompted, arguments, data, options):
    trainer = EmbeddingTrainer(prompted, arguments(**options), data=data)
    rows = data.pairs("dev", with_ids=True)
    with pytest.raises(ValueError, match=r"\['id'\] would be trained on"):
        trainer.evaluate(rows.add_column("id", ["a"] * len(rows)))
    renamed = rows.rename_columns({"anchor": "question", "positive": "chunk"})
    assert trainer.evaluate(renamed)["eval_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"])
    assert trainer.evaluate({"a": renamed})["eval_a_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"])


def test_a_view_with_its_chunk_first_is_not_called_out_of_order(tiny_model, arguments, data, caplog):
    for options in ({}, {"encode_once": False}):
        trainer = EmbeddingTrainer(tiny_model, arguments(loss="triplet", **options), data=data)
        next(iter(trainer.get_train_dataloader()))
    assert "usually expected" not in caplog.text


def test_a_score_is_no_list_of_ids(tiny_model, arguments):
    rows = Dataset.from_dict({"anchor": ["how", "where"], "positive": ["open", "wait"], "score": [1.0, 0.5]})
    with pytest.raises(ValueError, match="reads a list of ids in every row"):
        EmbeddingTrainer(
            tiny_model, arguments(save_strategy="no", load_best_model_at_end=False), train_dataset=rows
        ).train()


def test_a_stream_of_unknown_columns_is_left_to_sentence_transformers(tiny_model, arguments):
    stream = IterableDataset.from_generator(lambda: iter([{"anchor": "how", "positive": "open"}]))
    with pytest.raises(ValueError, match="features"):
        EmbeddingTrainer(tiny_model, arguments(), train_dataset=stream)
