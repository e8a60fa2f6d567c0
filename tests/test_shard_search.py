"""Search in shards, and evaluations of it: what all processes find together is what one retriever of all chunks finds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ddp import launch
from test_shards import CHUNKS, QUESTIONS

import embedtune as et
from embedtune.retrieval import shard_search
from embedtune.retrieval.shard_search import corpus_words, merged, rows_of_shards, search_shards
from embedtune.retrieval.shards import encode_shards, write_corpus
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights
from embedtune.training.negatives.mine_shards import mine_shards


@pytest.fixture
def shards(tmp_path, tiny_model):
    write_corpus(reversed(CHUNKS), tmp_path / "corpus", chunks_per_shard=5)
    encode_shards(tiny_model, tmp_path / "corpus", output_dir=tmp_path / "vectors")
    return tmp_path / "vectors"


def asked(chunks):
    """Questions about every second chunk, all of them in the test split."""
    questions = [et.Question(f"{i}", f"how to {chunk.text}", (chunk.id,)) for i, chunk in enumerate(chunks[::2])]
    starts = [1_000 * int(chunk.id.partition("#")[2]) for chunk in chunks]
    chunks = [replace(c, start=start, end=start + len(c.text)) for c, start in zip(chunks, starts, strict=True)]
    return et.build_dataset(chunks, [replace(one, split="test") for one in questions], split_by="given")


def of_hits(hits):
    return [[(hit.id, hit.score, hit.words) for hit in row] for row in hits]


def of_found(found):
    return [list(zip(*row, strict=True)) for row in zip(found.ids, found.scores, found.word_scores, strict=True)]


def require_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert [chunk for chunk, *_ in one] == [chunk for chunk, *_ in other]
        np.testing.assert_allclose([row[1:] for row in one], [row[1:] for row in other], atol=1e-6)


@pytest.mark.parametrize("word_weight", [0.0, 0.7, math.inf])
def test_one_process_finds_what_a_retriever_of_all_chunks_finds(shards, tiny_model, word_weight):
    words = LearnedWords(WordWeights.learn(["how to open the door", "how to replace the lamp"]))
    exact = et.Retriever.from_chunks(tiny_model, CHUNKS, words=words, word_weight=word_weight)
    few = et.Retriever.from_chunks(tiny_model, CHUNKS[:2], words=words, word_weight=word_weight)
    for k in (1, 4, 99):
        found = search_shards(few, shards, QUESTIONS, k=k)
        require_equal(of_found(found), of_hits(exact.search_batch(QUESTIONS, k=k)))
    assert found.num_chunks == len(CHUNKS)


def test_equal_chunks_of_different_shards_are_ordered_by_their_ids(tiny_model, tmp_path):
    chunks = [et.Chunk(f"{i:02}", "d", "open the door", 0, 13) for i in range(9)]
    order = [8, 0, 7, 1, 6, 2, 5, 3, 4]
    write_corpus([chunks[i] for i in order], tmp_path / "corpus", chunks_per_shard=2)
    encode_shards(tiny_model, tmp_path / "corpus", output_dir=tmp_path / "vectors")
    retriever = et.Retriever.from_chunks(tiny_model, chunks[:1])
    assert search_shards(retriever, tmp_path / "vectors", ["door"], k=5).ids == [["00", "01", "02", "03", "04"]]


@pytest.mark.parametrize("word_weight", [0.0, 0.7])
def test_an_evaluation_of_shards_is_that_of_a_retriever_of_all_chunks(shards, tiny_model, word_weight):
    copy = et.Chunk("copy.md#0", "copy.md", CHUNKS[0].text, 0, 9)
    write_corpus([*CHUNKS, copy], shards.parent / "more", chunks_per_shard=6)
    encode_shards(tiny_model, shards.parent / "more", output_dir=shards.parent / "encoded")
    exact = et.Retriever.from_chunks(tiny_model, [*CHUNKS, copy], word_weight=word_weight)
    wanted = et.TopKEvaluator(asked([*CHUNKS[:8], copy, *CHUNKS[8:]]), k=(1, 3)).evaluate(exact)
    questions = {row["query"] for row in wanted.per_query}
    data = asked(CHUNKS[:8])
    few = et.Retriever.from_dataset(tiny_model, data, word_weight=word_weight)
    found = et.TopKEvaluator(data, k=(1, 3)).evaluate_shards(few, shards.parent / "encoded")
    assert found.num_chunks == len(CHUNKS) + 1
    rows = {row["query"]: row for row in wanted.per_query}
    assert {row["query"] for row in found.per_query} <= questions
    for row in found.per_query:
        for name in ("relevant", "rank", "retrieved"):
            assert row[name] == rows[row["query"]][name]
        for name in ("scores", "word_scores"):
            assert row[name] == pytest.approx(rows[row["query"]][name], abs=1e-5)
    assert found.per_query[0]["relevant"] == ["copy.md#0", "pump.md#0"]


def test_evaluations_of_the_same_shards_can_be_compared_and_others_cannot(shards, tiny_model):
    evaluator = et.TopKEvaluator(asked(CHUNKS[:8]), k=(1, 3))
    retriever = et.Retriever.from_chunks(tiny_model, CHUNKS[:8])
    both, vectors = (evaluator.evaluate_shards(one, shards) for one in (retriever, retriever.with_word_weight(0)))
    assert both.fingerprint == vectors.fingerprint
    write_corpus(CHUNKS[:9], shards.parent / "fewer", chunks_per_shard=5)
    encode_shards(tiny_model, shards.parent / "fewer", output_dir=shards.parent / "other")
    assert evaluator.evaluate_shards(retriever, shards.parent / "other").fingerprint != both.fingerprint


def test_shards_without_a_chunk_that_answers_a_question_are_not_evaluated(shards, tiny_model):
    lost = et.Chunk("lost.md#0", "lost.md", "open the harbour", 0, 16)
    changed = replace(CHUNKS[0], text="open the pump, slowly")
    retriever = et.Retriever.from_chunks(tiny_model, CHUNKS[:8])
    for chunks in ([lost, *CHUNKS[:4]], [changed, *CHUNKS[1:4]]):
        with pytest.raises(ValueError, match=f"1 chunks that answer questions, such as '{chunks[0].id}'"):
            et.TopKEvaluator(asked(chunks), k=(1, 3)).evaluate_shards(retriever, shards)


SCORED = st.tuples(st.sampled_from([-1.0, -0.5, 0.0]), st.integers(0, 30).map(str), st.just(0.0))


@given(st.lists(st.lists(SCORED, unique_by=lambda one: one[1], max_size=12), min_size=1, max_size=3), st.data())
def test_the_best_of_parts_are_the_best_of_all_wherever_they_are_cut(rows, data):
    k, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    where = [[data.draw(st.integers(0, size - 1)) for _ in row] for row in rows]
    parts = [
        [
            [one for one, at in zip(row, places, strict=True) if at == part]
            for row, places in zip(rows, where, strict=True)
        ]
        for part in range(size)
    ]
    found = merged([merged([part], k) for part in parts], k)
    assert found == [sorted(row, key=lambda one: (one[0], one[1]))[:k] for row in rows]


def test_words_are_counted_in_all_shards_and_only_those_of_the_questions(tiny_model):
    whole = et.Retriever.from_chunks(tiny_model, CHUNKS).index
    parts = [et.Retriever.from_chunks(tiny_model, some).index for some in (CHUNKS[:7], CHUNKS[7:])]
    found = corpus_words(parts, ["open the garden", "zebra"], lambda one: [one])
    assert found.size == len(CHUNKS)
    assert found.mean_length == whole.words.statistics.mean_length
    tokens = shard_search.hashed_tokens("open the garden zebra")[:4]
    np.testing.assert_allclose(found.idf(tokens), whole.words.statistics.idf(tokens))


def test_a_shard_is_held_at_a_time(shards, tiny_model, monkeypatch):
    held, read = [], shard_search.read_shard

    def reading(path, manifest):
        index = read(path, manifest)
        held.append(len(index))
        return index

    monkeypatch.setattr(shard_search, "read_shard", reading)
    search_shards(et.Retriever.from_chunks(tiny_model, CHUNKS[:3], word_weight=0.0), shards, QUESTIONS)
    assert held == [5, 5, 5, 5, 2]  # once, since words do not count


def test_rows_are_found_by_id_and_by_text(shards):
    ids = rows_of_shards(shards, "_id", ["pump.md#1", "crane.md#0", "nowhere"])
    assert ids["_id"].to_pylist() == ["crane.md#0", "pump.md#1"]
    assert rows_of_shards(shards, "text", [CHUNKS[3].text])["_id"].to_pylist() == [CHUNKS[3].id]


def test_what_cannot_be_searched_is_refused_with_the_way_out(shards, tiny_model, tmp_path):
    retriever = et.Retriever.from_chunks(tiny_model, CHUNKS[:3])
    write_corpus([*CHUNKS[:3], CHUNKS[0]], tmp_path / "twice", chunks_per_shard=2)
    encode_shards(tiny_model, tmp_path / "twice", output_dir=tmp_path / "others")
    with pytest.raises(ValueError, match=r"'pump\.md#0' occurs in two shards"):
        search_shards(retriever, tmp_path / "others", ["pump"])
    with pytest.raises(ValueError, match="k=0"):
        search_shards(retriever, shards, ["pump"], k=0)
    (shards / "000001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 5 shards are missing"):
        search_shards(retriever, shards, ["pump"])
    other = et.Retriever.from_chunks("minilm", CHUNKS[:3])
    with pytest.raises(ValueError, match=r"shards\.json was made by another model"):
        search_shards(other, shards, ["pump"])


TOGETHER = """
import json, sys
from pathlib import Path
import torch
from sentence_transformers import SentenceTransformer
sys.path.insert(0, sys.argv[3])
from test_shard_search import everything_of

found = everything_of(SentenceTransformer(sys.argv[1], device="cpu"), sys.argv[2])
assert torch.distributed.get_world_size() == 2
(Path(sys.argv[4]) / f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
"""


def everything_of(model, folder):
    retriever, data = et.Retriever.from_chunks(model, CHUNKS[:2], word_weight=0.7), asked(CHUNKS[:8])
    return json.loads(
        json.dumps(
            {
                "found": [search_shards(retriever, folder, QUESTIONS, k=k) for k in (3, 99)],
                "rows": rows_of_shards(folder, "_id", ["pump.md#1", "crane.md#0"])["text"].to_pylist(),
                "evaluation": et.TopKEvaluator(data, k=(1, 3)).evaluate_shards(retriever, folder).per_query.to_dict(),
                "negatives": mine_shards(model, data, folder, split="test", relative_margin=None).to_dict(),
            }
        )
    )


@pytest.mark.slow
def test_two_processes_search_evaluate_and_mine_together_and_each_learns_what_one_process_finds(
    shards, tiny_model, tiny_model_folder, tmp_path
):
    done = launch(tmp_path, TOGETHER, tiny_model_folder, shards, Path(__file__).parent, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    each = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert each[0] == each[1] == everything_of(tiny_model, shards)
