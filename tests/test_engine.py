"""A retriever in Milvus finds what the exact one finds among its candidates, with the same scores, after any changes."""

from __future__ import annotations

import math
import sys
from functools import partial
from itertools import count

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import embedtune as et
from embedtune.errors import OptionalDependencyError
from embedtune.retrieval import engine
from embedtune.retrieval.engine import EngineParts
from embedtune.retrieval.engine_words import WordTable, sparse_query
from embedtune.retrieval.fusion import Fusion
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.retrieval.search import top_k
from embedtune.retrieval.shards import encode_shards, shards_to_engine, write_corpus
from embedtune.retrieval.words import WordIndex, WordWeights

DIM = 8
WORDS = ["pump", "valve", "garden", "gardens", "key", "door", "lamp", "of", "the"]
QUESTIONS = ["the pump of the garden", "valve key", "zebra", "a lamp in the gardens of the door", "?!"]
QUOTED = """it's "so" \\ ß.md"""
IDS = ["", *(f"{number:02}" for number in range(20)), 'a "b"', "c'd\\e", "ümlaut/ß"]
IDS = [f"{name}#0" for name in IDS]
NAMES = (f"corpus_{number}" for number in count())

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
corpora = st.dictionaries(st.sampled_from(IDS), texts, min_size=1, max_size=16)
changes = st.lists(
    st.tuples(st.sets(st.sampled_from(IDS), max_size=4), st.dictionaries(st.sampled_from(IDS), texts, max_size=6)),
    max_size=3,
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("milvus_lite", reason="needs Milvus Lite")
    return str(tmp_path_factory.mktemp("milvus") / "chunks.db")


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return SentenceTransformer(str(tiny_model_folder), device="cpu")


def vector_of(text):
    """A unit vector for each text, equal for texts of equal length, so that scores tie."""
    found = np.random.default_rng(len(text)).standard_normal(DIM).astype(np.float32)
    return found / np.linalg.norm(found)


def index_of(texts):
    texts = dict(sorted(texts.items()))
    rows = table_of_texts(list(texts.values()))
    rows = rows.set_column(0, "_id", pyarrow.array(list(texts), pyarrow.string()))
    vectors = np.array([vector_of(text) for text in texts.values()], dtype=np.float32).reshape(-1, DIM)
    return ChunkIndex(rows, vectors, "made by a test")


def filled(address, index, *, num_words=None):
    words = len(index.words.hashes) if num_words is None else num_words
    parts = EngineParts.create(index, address, name=next(NAMES), token="", num_words=words)
    parts.finish(0, 0)
    return parts.around([]).changed([], index.chunks, index.vectors)


def in_memory(fusion, index, questions, vectors, k):
    ranking = fusion.rank(index, questions, vectors, min(k, len(index)))
    return [named(index, *row) for row in zip(*ranking, strict=True)]


def in_engine(fusion, parts, questions, vectors, k):
    found = []
    for one, some in parts.candidates(fusion, questions, vectors, k):
        ranking = fusion.rank_parts(some, questions[one], vectors[one], min(k, len(some)))
        found += [named(some.main, *row) for row in zip(*ranking, strict=True)]
    return found


def named(index, positions, scores):
    return [(index.ids[position], score) for position, score in zip(positions, scores, strict=True) if position >= 0]


def assert_same(found, expected):
    assert [[name for name, _ in row] for row in found] == [[name for name, _ in row] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-6)


@pytest.mark.parametrize("word_weight", [0.0, 0.7, math.inf])
def test_an_engine_that_was_changed_finds_what_an_index_made_anew_finds(word_weight, address):
    weights = WordWeights.learn(["where is the pump", "which key of the door", "the lamp"])
    vectors = np.array([vector_of(question) for question in QUESTIONS])

    @given(corpora, changes)
    @settings(max_examples=8, deadline=None)
    def check(texts, changes):
        fusion, parts = Fusion(word_weight, weights), filled(address, index_of(texts))
        for removed, new in changes:
            texts = {name: text for name, text in texts.items() if name not in removed} | new
            table = index_of(new)
            parts = parts.around([*removed, *new]).changed(removed, table.chunks, table.vectors)
        assert len(parts) == len(texts)
        assert parts.merged.ids == sorted(texts)
        if texts:
            expected = in_memory(fusion, index_of(texts), QUESTIONS, vectors, 5)
            assert_same(in_engine(fusion, parts, QUESTIONS, vectors, 5), expected)

    check()


def test_of_many_chunks_the_scores_are_those_of_all_chunks_and_few_of_the_best_are_missed(address):
    draw = np.random.default_rng(0)
    vocabulary = [f"word{number}" for number in range(400)]
    texts = {f"{row:04}": " ".join(draw.choice(vocabulary, 12)) for row in range(600)}
    index = index_of(texts)
    index = ChunkIndex(index.chunks, unit(draw.standard_normal((600, DIM))), "made by a test")
    questions = [" ".join(draw.choice(vocabulary, 3)) for _ in range(30)]
    vectors = unit(draw.standard_normal((30, DIM)))
    fusion, parts = Fusion(2.0), filled(address, index)
    every = [dict(row) for row in in_memory(fusion, index, questions, vectors, 600)]
    found = in_engine(fusion, parts, questions, vectors, 5)
    for row, scores in zip(found, every, strict=True):
        assert [score for _, score in row] == pytest.approx([scores[name] for name, _ in row], abs=1e-6)
        assert row == sorted(row, key=lambda hit: (-hit[1], hit[0]))
    best = in_memory(fusion, index, questions, vectors, 5)
    recall = np.mean([len(dict(a).keys() & dict(b).keys()) / 5 for a, b in zip(found, best, strict=True)])
    assert recall > 0.95


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_words", [0, 10_000])
def test_words_are_counted_in_buckets_as_in_one_table(num_words, address):
    texts = {name: f"{word} of the {other}" for name, word, other in zip(IDS, WORDS, reversed(WORDS), strict=False)}
    parts, words = filled(address, index_of(texts), num_words=num_words), WordIndex.build(list(texts.values()))
    asked = np.sort(np.concatenate([words.hashes, np.array([0, 2**64 - 1], dtype=np.uint64)]))
    found = parts.words.statistics(asked)
    assert found.idf(asked).tolist() == words.statistics.idf(asked).tolist()
    assert (found.size, found.mean_length) == (len(texts), words.statistics.mean_length)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_question_is_searched_by_the_fewest_words_that_hold_most_of_its_weight(weights):
    kept = sorted(sparse_query(np.arange(len(weights), dtype=np.uint64), np.array(weights)).values())
    assert sum(kept) >= 0.9 * sum(weights) - 1e-9
    assert sum(kept[1:]) < 0.9 * sum(weights) + 1e-9
    assert kept == sorted(weights)[len(weights) - len(kept) :]


def chunk(name, text, place=0):
    return et.Chunk(f"{name}#{place}", name, text, 0, len(text), title=name.upper(), headings=("A", "B"), page=3)


def hits(found):
    return [(hit.id, hit.text, hit.document_id, hit.title, hit.headings, hit.page) for hit in found]


def test_a_retriever_in_an_engine_is_changed_and_asked_like_one_in_memory(model, address, tmp_path):
    chunks = [chunk(f"d{number}.md", f"the {WORDS[number % 9]} of the {WORDS[number % 7]}") for number in range(30)]
    exact = et.Retriever.from_chunks(model, chunks)
    exact.save(tmp_path / "saved")
    name = next(NAMES)
    written = exact.to_engine(address, name=name)
    opened = et.Retriever.from_engine(tmp_path / "saved", address, name=name)
    for one in (exact, written):
        one.add([chunk("new.md", "a lamp for the pump"), chunk("new.md", "a key for the door", 1)])
        one.update(
            [chunk("new.md", "a lamp for the valve"), chunk("d3.md", "no garden"), chunk("d3.md", "two pumps", 1)]
        )
        one.add([chunk(QUOTED, "one roof")])
        one.update([chunk(QUOTED, "two roofs")])
        one.remove(["d5.md#0"])
    for asked in (written, opened, opened.with_word_weight(exact.word_weight)):
        assert len(asked) == len(exact)
        for question in QUESTIONS:
            found, expected = asked.search(question, k=7), exact.search(question, k=7)
            assert hits(found) == hits(expected)
            for part in ("score", "similarity", "words"):
                mine, theirs = ([getattr(hit, part) for hit in some] for some in (found, expected))
                assert mine == pytest.approx(theirs, abs=1e-6)
        positions, scores = asked.rank(QUESTIONS, exact.index.texts(), 5)
        expected_positions, expected_scores = exact.rank(QUESTIONS, exact.index.texts(), 5)
        assert positions.tolist() == expected_positions.tolist()
        assert scores == pytest.approx(expected_scores, abs=1e-6)
    assert opened.approximate
    with pytest.raises(ValueError, match="already has chunk"):
        opened.add([chunk("new.md", "again")])
    with pytest.raises(ValueError, match="no chunk"):
        opened.remove(["d5.md#0"])
    with pytest.raises(ValueError, match="already has a collection"):
        exact.to_engine(address, name=name)


def test_a_retriever_in_an_engine_that_is_emptied_finds_nothing(model, address):
    served = et.Retriever.from_chunks(model, [chunk("a.md", "the pump")]).to_engine(address, name=next(NAMES))
    served.remove(["a.md#0"])
    assert len(served) == 0
    assert served.search("the pump") == []


def test_what_another_model_made_is_refused(model, address, tmp_path):
    exact = et.Retriever.from_chunks(model, [chunk("a.md", "the pump"), chunk("b.md", "a door")])
    exact.save(tmp_path / "saved")
    other = EngineParts.create(index_of({"a": "the pump"}), address, name=next(NAMES), token="", num_words=1)
    other.finish(0, 0)
    with pytest.raises(ValueError, match="did not make the index"):
        et.Retriever.from_engine(tmp_path / "saved", address, name=other.name)


def test_a_chunk_that_milvus_has_no_room_for_is_refused_before_anything_is_changed(model, address, tmp_path):
    fits, long = ("ü" * size for size in (engine._LONGEST_TEXT // 2, engine._LONGEST_TEXT // 2 + 1))
    chunks = [et.Chunk(f"{i}#0", str(i), text, 0, len(text)) for i, text in enumerate(["the pump", fits])]
    too_long = et.Chunk("9#0", "9", long, 0, len(long))
    retriever = et.Retriever.from_chunks(model, chunks)
    there = retriever.to_engine(address, name="room")
    with pytest.raises(ValueError, match=r"text of chunk '9#0' has 65,536 bytes, and Milvus takes at most 65,535"):
        there.add([too_long])
    retriever.save(tmp_path / "saved")
    assert len(et.Retriever.from_engine(tmp_path / "saved", address, name="room")) == 2
    retriever.add([too_long])
    write_corpus([*chunks, too_long], tmp_path / "corpus")
    encode_shards(model, tmp_path / "corpus", output_dir=tmp_path / "vectors")
    for write in (retriever.to_engine, partial(shards_to_engine, tmp_path / "vectors")):
        with pytest.raises(ValueError, match="text of chunk '9#0' has"):
            write(address, name="roomless")
        assert not engine._connect(address, "").has_collection("roomless_words")


def test_chunks_whose_writer_was_stopped_are_not_opened(address, monkeypatch):
    parts = filled(address, index_of({"a": "the pump"}))
    monkeypatch.setattr(WordTable, "count", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    new = index_of({"b": "a door"})
    with pytest.raises(KeyboardInterrupt):
        parts.around(["b"]).changed([], new.chunks, new.vectors)
    with pytest.raises(ValueError, match="being changed when their writer stopped"):
        EngineParts.open(address, name=parts.name, token="")


def test_chunks_that_were_never_written_are_not_found(address):
    with pytest.raises(FileNotFoundError, match="to_engine"):
        EngineParts.open(address, name="nothing", token="")


def test_vectors_that_are_compared_otherwise_are_refused(address):
    index = index_of({"a": "the pump"})
    index = ChunkIndex(index.chunks, index.vectors, "", "manhattan")
    with pytest.raises(ValueError, match="manhattan"):
        EngineParts.create(index, address, name=next(NAMES), token="", num_words=1)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(OptionalDependencyError, match=r"embedtune\[milvus\]"):
        EngineParts.open("chunks.db", name="chunks", token="")


def test_in_a_file_no_chunk_is_overlooked_by_its_vector(tmp_path, monkeypatch):
    pytest.importorskip("milvus_lite", reason="needs Milvus Lite")
    monkeypatch.setattr(engine, "_CANDIDATES", 20)
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((1_500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ChunkIndex(table_of_texts(["pump"] * len(vectors)), vectors, "drawn")
    EngineParts.of(index, str(tmp_path / "chunks.db"), name="chunks", token="")
    parts = EngineParts.open(str(tmp_path / "chunks.db"), name="chunks", token="")
    asked = draw.standard_normal((20, 64)).astype(np.float32)
    wanted = top_k(asked, vectors, 20, similarity="dot").positions
    found = parts.candidates(Fusion(0.0), ["?"] * len(asked), asked, 20)
    for row, (_, some) in zip(wanted, found, strict=True):
        assert set(some.main.ids) == {index.ids[position] for position in row}
