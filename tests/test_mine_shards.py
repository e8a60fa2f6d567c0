"""Hard negatives from shards: those of one process with all chunks, and never what the dataset knows to be relevant."""

from __future__ import annotations

import pytest
from test_mining import entangled_data
from test_trainer import make_data

import embedtune as et
from embedtune.retrieval.shards import encode_shards, write_corpus
from embedtune.training.negatives.mine_shards import mine_shards
from embedtune.training.negatives.mining import mine_hard_negatives


def chunks_of(data):
    return [et.Chunk(row["_id"], row["document_id"], row["text"], row["start"], row["end"]) for row in data.corpus]


def shards_of(chunks, model, folder):
    write_corpus(chunks, folder / "corpus", chunks_per_shard=5)
    encode_shards(model, folder / "corpus", output_dir=folder / "vectors")
    return folder / "vectors"


@pytest.mark.parametrize(
    "options",
    [
        {"relative_margin": None},
        {"num_negatives": 3},
        {"loss": "triplet", "absolute_margin": 0.02},
        {"loss": "cosine", "relative_margin": None, "range_min": 2, "num_negatives": 2},
        {"relative_margin": None, "max_score": 0.97, "min_score": 0.5, "num_negatives": 2, "seed": 4},
    ],
)
def test_where_the_shards_are_the_corpus_the_rows_are_those_of_one_process(tiny_model, tmp_path, options):
    for name, data in (("plain", make_data()), ("entangled", entangled_data())):
        folder = shards_of(chunks_of(data), tiny_model, tmp_path / name)
        assert mine_shards(tiny_model, data, folder, **options).to_dict() == (
            mine_hard_negatives(tiny_model, data, **options).to_dict()
        )


def test_chunks_that_the_dataset_does_not_have_become_negatives(tiny_model, tmp_path):
    data = make_data(test_size=0, dev_size=0)
    texts = [f"{letter} {data.queries[0]['text']}" for letter in "abcdef"]
    others = [et.Chunk(f"x{i}#0", f"x{i}", text, 0, len(text)) for i, text in enumerate(texts)]
    folder = shards_of([*chunks_of(data), *others], tiny_model, tmp_path)
    everything = et.build_dataset([*chunks_of(data), *others], data.to_questions(), split_by="given")
    rows = mine_shards(tiny_model, data, folder, num_negatives=2, relative_margin=None)
    wanted = mine_hard_negatives(tiny_model, everything, num_negatives=2, relative_margin=None)
    columns = ["anchor", "positive", "negative_1", "negative_2"]
    assert rows.select_columns(columns).to_dict() == wanted.select_columns(columns).to_dict()
    assert {*rows["negative_1"], *rows["negative_2"]} & {chunk.text for chunk in others}
    content = {text: -1 - label[-2] for text, label in zip(rows["negative_1"], rows["label"], strict=True)}
    content |= dict(zip(rows["positive"], [label[0] for label in rows["label"]], strict=True))
    assert len(set(content.values())) == len(content), "each content has an id of its own"


def test_what_is_like_a_chunk_of_the_dataset_or_of_its_documents_is_never_a_negative(tiny_model, tmp_path):
    data = make_data()
    held_out = data.corpus[data.corpus["_id"][:].index(next(iter(data.relevant("test").values()))[0])]
    others = [
        et.Chunk("copy#0", "copy", data.corpus[0]["text"].upper() + "!", 0, 9),
        et.Chunk("held out#1", held_out["document_id"], "what to press for the lamp and the clock", 0, 9),
        et.Chunk("fine#0", "fine", "where to check the crane of a ship", 0, 9),
    ]
    folder = shards_of([*chunks_of(data), *others], tiny_model, tmp_path)
    rows = mine_shards(tiny_model, data, folder, num_negatives=9, relative_margin=None)
    negatives = {row[f"negative_{i}"] for row in rows for i in range(1, 10)}
    assert negatives & {chunk.text for chunk in others} == {others[2].text}


def test_a_filter_that_is_not_one_is_refused(tiny_model, tmp_path):
    with pytest.raises(TypeError, match=r"does not take \['use_faiss'\], only \['absolute_margin'"):
        mine_shards(tiny_model, make_data(), tmp_path, use_faiss=True)
    with pytest.raises(ValueError, match="loss='none' is not one of"):
        mine_shards(tiny_model, make_data(), tmp_path, loss="none")
    with pytest.raises(FileNotFoundError, match="encode_shards"):
        mine_shards(tiny_model, make_data(), tmp_path / "nowhere")
