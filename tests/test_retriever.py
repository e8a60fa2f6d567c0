from __future__ import annotations

import copy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from embedtune.retrieval.document_fingerprint import document_fingerprint
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense
from test_evaluator import ADJECTIVES, THINGS, build

import embedtune as et
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.index import ChunkIndex
from embedtune.retrieval.retriever import Retriever

torch.set_num_threads(1)

TEXTS = {f"{thing}#{i}": f"check the {word} {thing}" for i, word in enumerate(ADJECTIVES[:5]) for thing in THINGS}
QUESTIONS = [f"where is the {word} {thing}" for word in ADJECTIVES[:4] for thing in THINGS[:6]]


def chunk(chunk_id, text):
    return et.Chunk(chunk_id, chunk_id.partition("#")[0], text, 0, len(text))


def chunks_of(texts):
    return [chunk(chunk_id, text) for chunk_id, text in texts.items()]


@pytest.fixture
def retriever(tiny_model):
    return Retriever.from_chunks(tiny_model, chunks_of(TEXTS))


def counting(model, monkeypatch):
    """Count the texts that go through ``encode_document``."""
    encoded = []
    real = model.encode_document

    def encode_document(texts, *args, **kwargs):
        encoded.extend(texts)
        return real(texts, *args, **kwargs)

    monkeypatch.setattr(model, "encode_document", encode_document)
    return encoded


def found(retriever, questions=QUESTIONS, k=10):
    return [[(hit.id, hit.score) for hit in hits] for hits in retriever.search_batch(questions, k=k)]


def test_it_finds_what_the_evaluator_finds(tiny_model):
    relevant = {f"q{i:02}": [next(iter(TEXTS))] for i in range(len(QUESTIONS))}
    data = build(TEXTS, dict(zip(relevant, QUESTIONS, strict=True)), relevant)
    rows = et.TopKEvaluator(data, k=(10,)).evaluate(tiny_model).per_query
    hits = found(Retriever.from_dataset(tiny_model, data))
    assert [[chunk_id for chunk_id, _ in row] for row in hits] == rows["retrieved"][:]
    np.testing.assert_allclose([[score for _, score in row] for row in hits], rows["scores"][:], atol=1e-6)


def test_one_question_finds_what_a_batch_finds(retriever):
    assert [hit.id for hit in retriever.search(QUESTIONS[3], k=5)] == [i for i, _ in found(retriever, k=5)[3]]
    assert retriever.search_batch([]) == []


def test_a_hit_says_where_it_comes_from(tiny_model):
    text = "press to open"
    one = et.Chunk("a.md#0", "a.md", text, 0, len(text), headings=("Doors", "Open"), title="House")
    (hit,) = Retriever.from_chunks(tiny_model, [one], context=["title"]).search("how to open")
    assert (hit.text, hit.document_id, hit.title, hit.headings) == (
        f"House\n{text}",
        "a.md",
        "House",
        ("Doors", "Open"),
    )


def test_fewer_chunks_than_k_are_all_found(tiny_model):
    retriever = Retriever.from_chunks(tiny_model, chunks_of({"a#0": "open", "b#0": "close"}))
    assert {hit.id for hit in retriever.search("open the door", k=10)} == {"a#0", "b#0"}
    retriever.remove(["a#0", "b#0"])
    assert retriever.search("open the door") == []


def test_equal_chunks_are_found_in_the_order_of_their_ids(tiny_model):
    retriever = Retriever.from_chunks(tiny_model, chunks_of({"c#0": "open", "b#0": "open", "a#0": "open"}))
    assert [hit.id for hit in retriever.search("close the door")] == ["a#0", "b#0", "c#0"]


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(retriever, question):
    with pytest.raises(ValueError, match="is empty"):
        retriever.search(question)


def test_a_k_below_one_is_refused(retriever):
    with pytest.raises(ValueError, match="k=0"):
        retriever.search("open", k=0)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([("a#0", "open"), ("a#0", "close")], "stands more than once"),
        ([("a#0", "open"), ("b#0", " ")], "is empty"),
    ],
)
def test_chunks_that_cannot_be_told_apart_or_are_empty_are_refused(tiny_model, chunks, message):
    with pytest.raises(ValueError, match=message):
        Retriever.from_chunks(tiny_model, [chunk(*one) for one in chunks])


def test_a_model_that_overflows_is_refused(tiny_model):
    next(tiny_model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"vector of 'a#0' .* not finite"):
        Retriever.from_chunks(tiny_model, chunks_of({"a#0": "open"}))


def test_what_is_saved_is_loaded_the_same_and_stays_on_disk(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    again = Retriever.load(tmp_path / "index", tiny_model)
    assert found(again) == found(retriever)
    assert again.index.corpus_fingerprint == retriever.index.corpus_fingerprint
    vectors = load_file(tmp_path / "index" / "vectors.safetensors")["vectors"].numpy()
    np.testing.assert_array_equal(again.index.vectors, vectors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_vectors_and_texts_of_a_loaded_index_are_mapped_from_its_files(tmp_path, retriever, tiny_model):
    retriever.save(tmp_path / "index")
    loaded = Retriever.load(tmp_path / "index", tiny_model)
    mapped = Path("/proc/self/maps").read_text()
    assert len(loaded) == len(TEXTS)
    assert str(tmp_path / "index" / "vectors.safetensors") in mapped
    assert str(tmp_path / "index" / "chunks.arrow") in mapped


def test_the_model_is_loaded_from_where_it_was(tiny_model_folder, tmp_path):
    retriever = Retriever.from_chunks(str(tiny_model_folder), chunks_of(TEXTS))
    retriever.save(tmp_path / "index")
    assert found(Retriever.load(tmp_path / "index")) == found(retriever)


def test_an_index_that_does_not_know_its_model_asks_for_it(retriever, tmp_path):
    retriever.save(tmp_path / "index")
    with pytest.raises(ValueError, match="does not say where its model is"):
        Retriever.load(tmp_path / "index")


def test_saving_replaces_an_index_and_nothing_else(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    retriever.remove(["pump#0"])
    retriever.save(tmp_path / "index")
    assert len(Retriever.load(tmp_path / "index", tiny_model)) == len(TEXTS) - 1
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no saved index"):
        retriever.save(tmp_path / "letters")


def test_a_crash_while_saving_leaves_the_old_index(retriever, tiny_model, tmp_path, monkeypatch):
    retriever.save(tmp_path / "index")
    retriever.remove(["pump#0"])

    def fails(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("embedtune.retrieval.index.save_file", fails)
    with pytest.raises(OSError, match="No space"):
        retriever.save(tmp_path / "index")
    assert len(Retriever.load(tmp_path / "index", tiny_model)) == len(TEXTS)


def test_a_missing_and_a_damaged_index_are_named(retriever, tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved index"):
        Retriever.load(tmp_path / "nothing", tiny_model)
    retriever.save(tmp_path / "index")
    save_file({"vectors": torch.ones(3, 32)}, tmp_path / "index" / "vectors.safetensors")
    with pytest.raises(ValueError, match="is damaged: 3 vectors for 80 chunks"):
        Retriever.load(tmp_path / "index", tiny_model)


# Fingerprints


def test_a_tuned_model_with_the_old_index_is_refused(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        list(tuned.parameters())[-1].add_(1e-3)
    with pytest.raises(ValueError, match=r"did not make the index .* reindex"):
        Retriever.load(tmp_path / "index", tuned)


def test_training_the_model_in_place_is_noticed_at_the_next_question(retriever, tiny_model):
    retriever.search("open")
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
    features = tiny_model.preprocess(["open the door"])
    tiny_model(features)["sentence_embedding"].sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="did not make the index"):
        retriever.search("open")


def test_a_model_that_tokenizes_differently_is_refused(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    tiny_model.tokenizer.backend_tokenizer.normalizer = None
    from tokenizers import normalizers

    tiny_model.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("e", "zz")
    with pytest.raises(ValueError, match="another vector"):
        Retriever.load(tmp_path / "index", tiny_model)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.prompts.update(document="passage: "),
        lambda model: setattr(model, "truncate_dim", 8),
        lambda model: setattr(model, "max_seq_length", 16),
        lambda model: setattr(model, "similarity_fn_name", "dot"),
        lambda model: setattr(model[1], "pooling_mode", "cls"),
        lambda model: model.half(),
    ],
)
def test_whatever_changes_a_documents_vector_changes_the_fingerprint(tiny_model, change):
    before = document_fingerprint(tiny_model)
    change(tiny_model)
    assert document_fingerprint(tiny_model) != before


def test_the_query_prompt_does_not_change_the_fingerprint(tiny_model):
    before = document_fingerprint(tiny_model)
    tiny_model.prompts["query"] = "query: "
    assert document_fingerprint(tiny_model) == before


def test_saving_and_loading_keeps_the_fingerprint(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    assert document_fingerprint(SentenceTransformer(str(tmp_path), device="cpu")) == document_fingerprint(tiny_model)
    assert document_fingerprint(et.load_model(tmp_path, device="cpu")) == document_fingerprint(tiny_model)


def test_a_lora_has_the_fingerprint_of_the_model_that_is_saved(tiny_model_folder, tmp_path):
    model = et.load_model(tiny_model_folder, lora=True, device="cpu")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.add_(0.01)
    model.save_pretrained(str(tmp_path))
    assert document_fingerprint(et.load_model(tmp_path, device="cpu")) == document_fingerprint(model)


def test_a_trained_query_side_keeps_the_index(tiny_model):
    document_side = list(copy.deepcopy(tiny_model).children())
    query_side = [*copy.deepcopy(tiny_model).children(), Dense(32, 32, bias=False, activation_function=None)]
    asymmetric = SentenceTransformer(modules=[Router.for_query_document(query_side, document_side)], device="cpu")
    retriever = Retriever.from_chunks(asymmetric, chunks_of(TEXTS))
    with torch.no_grad():
        query_side[-1].linear.weight.copy_(torch.eye(32).flip(0))
    assert retriever.search("open the door")
    with torch.no_grad():
        document_side[0].model.embeddings.word_embeddings.weight.add_(0.1)
    with pytest.raises(ValueError, match="did not make the index"):
        retriever.search("open the door")


# Adding, updating and removing


def test_added_updated_and_removed_chunks_give_the_index_of_the_new_corpus(retriever, tiny_model):
    texts = TEXTS | {"pump#0": "replace the old pump", "zoo#0": "a new garden", "aa#0": "the river is cold"}
    for gone in ("valve#1", "ship#2"):
        del texts[gone]
    retriever.add(chunks_of({i: texts[i] for i in ("zoo#0", "aa#0")}))
    retriever.update([chunk("pump#0", texts["pump#0"])])
    retriever.remove(["valve#1", "ship#2"])
    fresh = Retriever.from_chunks(tiny_model, chunks_of(texts))
    assert retriever.index.ids == fresh.index.ids
    assert retriever.index.texts() == fresh.index.texts()
    np.testing.assert_allclose(retriever.index.vectors, fresh.index.vectors, atol=1e-6)


def test_only_what_changed_is_encoded(retriever, tiny_model, monkeypatch):
    encoded = counting(tiny_model, monkeypatch)
    retriever.add([chunk("zoo#0", "a new garden")])
    assert encoded == ["a new garden"]
    retriever.update([chunk("pump#0", TEXTS["pump#0"]), chunk("zoo#0", "an old garden")])
    assert encoded[1:] == ["an old garden"]
    retriever.remove(["zoo#0"])
    assert len(encoded) == 2


def test_adding_a_known_chunk_and_changing_an_unknown_one_are_refused(retriever):
    with pytest.raises(ValueError, match=r"has chunk 'pump#0' already .* update\(\)"):
        retriever.add([chunk("pump#0", "open")])
    for change in (lambda: retriever.update([chunk("zoo#0", "open")]), lambda: retriever.remove(["zoo#0"])):
        with pytest.raises(ValueError, match=r"no chunk 'zoo#0' .* add\(\)"):
            change()
    assert retriever.index.texts() == [TEXTS[i] for i in sorted(TEXTS)]


def test_added_chunks_get_the_context_of_the_others(tiny_model):
    retriever = Retriever.from_chunks(tiny_model, [et.Chunk("a#0", "a", "open", 0, 4, title="Door")], context=["title"])
    retriever.add([et.Chunk("b#0", "b", "close", 0, 5, title="Roof")])
    assert retriever.index.texts() == ["Door\nopen", "Roof\nclose"]


def test_searching_goes_on_while_chunks_come_and_go(retriever):
    errors = []

    def search():
        try:
            for _ in range(40):
                hits = retriever.search("check the new pump", k=5)
                assert len(hits) == 5
                assert all(hit.text == TEXTS.get(hit.id, "a new garden") for hit in hits)
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=search)
    thread.start()
    while thread.is_alive():
        retriever.add([chunk("aa#0", "a new garden")])
        retriever.remove(["aa#0"])
    thread.join()
    assert not errors


# Words and graphs


def reciprocal_ranks(rankings, k):
    scores = {}
    for ranking in rankings:
        for rank, chunk_id in enumerate(ranking, start=1):
            scores[chunk_id] = scores.get(chunk_id, 0) + 1 / (60 + rank)
    return sorted(scores, key=lambda chunk_id: (-round(scores[chunk_id], 7), chunk_id))[:k]


def test_hybrid_search_joins_both_rankings_by_reciprocal_ranks(tiny_model):
    dense = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    hybrid = Retriever(tiny_model, dense.index, hybrid=True)
    positions, scores = BM25().rank(QUESTIONS, dense.index.texts(), len(TEXTS))
    for row, question in enumerate(QUESTIONS):
        by_words = [dense.index.ids[p] for p, s in zip(positions[row], scores[row], strict=True) if s > 0]
        by_vectors = [hit.id for hit in dense.search(question, k=100)]
        assert [hit.id for hit in hybrid.search(question)] == reciprocal_ranks([by_vectors, by_words], 10)


def test_a_question_without_known_words_is_still_found_by_its_vector(tiny_model):
    hybrid = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), hybrid=True)
    dense = Retriever(tiny_model, hybrid.index)
    assert [hit.id for hit in hybrid.search("xyz")] == [hit.id for hit in dense.search("xyz")]


def test_hybrid_search_by_vectors_alone_asks_for_the_texts(tiny_model):
    hybrid = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), hybrid=True)
    with pytest.raises(ValueError, match="needs the text of each question"):
        hybrid.search_vectors(hybrid.embed(["open"]))


def random_index(num_chunks, dim=32):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_chunks, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_graph_finds_nearly_what_an_exact_search_finds(tiny_model, tmp_path):
    pytest.importorskip("faiss")
    index = Retriever.from_chunks(tiny_model, chunks_of({f"{i:04}#0": f"pump {i}" for i in range(2000)})).index
    object.__setattr__(index, "vectors", random_index(2000))
    exact, approximate = Retriever(tiny_model, index), Retriever(tiny_model, index, approximate=True)
    queries = random_index(50)[::-1].copy()
    same = [
        len({hit.id for hit in a} & {hit.id for hit in b})
        for a, b in zip(exact.search_vectors(queries), approximate.search_vectors(queries), strict=True)
    ]
    assert sum(same) >= 0.99 * 10 * len(queries)
    approximate.save(tmp_path / "index")
    assert (tmp_path / "index" / "graph.faiss").exists()
    assert ChunkIndex.load(tmp_path / "index").faiss.ntotal == 2000


def test_a_changed_corpus_gets_a_graph_of_its_own(tiny_model):
    pytest.importorskip("faiss")
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), approximate=True)
    before = [hit.id for hit in retriever.search("check the cold pump", k=3)]
    retriever.remove(before[:1])
    assert [hit.id for hit in retriever.search("check the cold pump", k=2)] == before[1:]


def test_without_faiss_the_command_to_install_it_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), approximate=True)
    with pytest.raises(et.OptionalDependencyError, match=r"embedtune\[faiss\]"):
        retriever.search("open")


@pytest.mark.slow
def test_two_processes_encode_what_one_encodes(tiny_model):
    one = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    two = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), devices=["cpu", "cpu"])
    np.testing.assert_allclose(one.index.vectors, two.index.vectors, atol=1e-6)
