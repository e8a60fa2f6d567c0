from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense
from test_evaluator import ADJECTIVES, THINGS, build

import embedtune as et
from embedtune.errors import OptionalDependencyError
from embedtune.evaluation.result import Evaluation
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.fusion import Fusion
from embedtune.retrieval.index import ChunkIndex
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights

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
    hits = found(Retriever.from_dataset(tiny_model, data, word_weight=0))
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
        ([("a#0", "open"), ("a#0", "close")], "occurs more than once"),
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
    vectors = load_file(tmp_path / "index" / "index" / "vectors.safetensors")["vectors"].numpy()
    np.testing.assert_array_equal(again.index.vectors, vectors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_vectors_and_texts_of_a_loaded_index_are_mapped_from_its_files(tmp_path, retriever, tiny_model):
    retriever.save(tmp_path / "index")
    loaded = Retriever.load(tmp_path / "index", tiny_model)
    mapped = Path("/proc/self/maps").read_text()
    assert len(loaded) == len(TEXTS)
    assert str(tmp_path / "index" / "index" / "vectors.safetensors") in mapped
    assert str(tmp_path / "index" / "index" / "chunks.arrow") in mapped


def test_the_model_is_saved_with_the_rest_and_is_a_plain_one(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "saved")
    assert found(Retriever.load(tmp_path / "saved")) == found(retriever)
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(plain.encode_query(QUESTIONS), tiny_model.encode_query(QUESTIONS))


def test_a_model_that_is_saved_already_is_not_written_again(retriever, tiny_model, tmp_path, monkeypatch):
    retriever.save(tmp_path / "saved")
    monkeypatch.setattr(type(tiny_model), "save_pretrained", lambda *args: 1 / 0)
    retriever.add([chunk("zoo#0", "a new garden")])
    retriever.save(tmp_path / "saved")
    assert found(Retriever.load(tmp_path / "saved")) == found(retriever)


def test_without_its_chunks_a_retriever_takes_others(retriever, tmp_path):
    retriever.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "index")
    with pytest.raises(FileNotFoundError, match="without its chunks"):
        Retriever.load(tmp_path / "saved")
    assert found(Retriever.load(tmp_path / "saved", chunks=chunks_of(TEXTS))) == found(retriever)


def test_saving_replaces_an_index_and_nothing_else(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    retriever.remove(["pump#0"])
    retriever.save(tmp_path / "index")
    assert len(Retriever.load(tmp_path / "index", tiny_model)) == len(TEXTS) - 1
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a saved retriever"):
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
    with pytest.raises(FileNotFoundError, match="is not a saved retriever"):
        Retriever.load(tmp_path / "nothing", tiny_model)
    retriever.save(tmp_path / "index")
    save_file({"vectors": torch.ones(3, 32)}, tmp_path / "index" / "index" / "vectors.safetensors")
    with pytest.raises(ValueError, match=r"vectors\.safetensors is damaged"):
        Retriever.load(tmp_path / "index", tiny_model)
    sign(tmp_path / "index" / "index")
    with pytest.raises(ValueError, match="is damaged: it has 80 chunks and 3 vectors"):
        Retriever.load(tmp_path / "index", tiny_model)


# Fingerprints


def document_side(model):
    return model_fingerprint(model, side="document")


def sign(folder):
    """Let the settings of an index name the files that are there, as somebody who means harm would."""
    settings = json.loads((folder / "index.json").read_text())
    settings["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in settings["files"]}
    (folder / "index.json").write_text(json.dumps(settings))


def test_a_tuned_model_with_the_old_index_is_refused(retriever, tiny_model, tmp_path):
    retriever.save(tmp_path / "index")
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        list(tuned.parameters())[-1].add_(1e-3)
    with pytest.raises(ValueError, match="is not the one that the retriever"):
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
    with pytest.raises(ValueError, match="is not the one that the retriever"):
        Retriever.load(tmp_path / "index", tiny_model)


def test_a_model_that_computes_other_vectors_is_refused(retriever, tiny_model, tmp_path, monkeypatch):
    retriever.save(tmp_path / "index")
    real = ModelEncoder.encode_documents
    monkeypatch.setattr(ModelEncoder, "encode_documents", lambda self, texts: np.roll(real(self, texts), 1, axis=1))
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
    before = document_side(tiny_model)
    change(tiny_model)
    assert document_side(tiny_model) != before


def test_the_query_prompt_does_not_change_the_fingerprint(tiny_model):
    before = document_side(tiny_model)
    tiny_model.prompts["query"] = "query: "
    assert document_side(tiny_model) == before


def test_saving_and_loading_keeps_the_fingerprint(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    assert document_side(SentenceTransformer(str(tmp_path), device="cpu")) == document_side(tiny_model)
    assert document_side(et.load_model(tmp_path, device="cpu")) == document_side(tiny_model)


def test_a_lora_has_the_fingerprint_of_the_model_that_is_saved(tiny_model_folder, tmp_path):
    model = et.load_model(tiny_model_folder, lora=True, device="cpu")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.add_(0.01)
    model.save_pretrained(str(tmp_path))
    assert document_side(et.load_model(tmp_path, device="cpu")) == document_side(model)


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
    retriever.update(chunks_of({i: text for i, text in texts.items() if i.startswith("pump#")}))
    retriever.remove(["valve#1", "ship#2"])
    fresh = Retriever.from_chunks(tiny_model, chunks_of(texts))
    assert retriever.index.ids == fresh.index.ids
    assert retriever.index.texts() == fresh.index.texts()
    np.testing.assert_allclose(retriever.index.vectors, fresh.index.vectors, atol=1e-6)


def test_only_what_changed_is_encoded(retriever, tiny_model, monkeypatch):
    encoded = counting(tiny_model, monkeypatch)
    retriever.add([chunk("zoo#0", "a new garden")])
    assert encoded == ["a new garden"]
    pumps = chunks_of({i: text for i, text in TEXTS.items() if i.startswith("pump#")})
    retriever.update([*pumps, chunk("zoo#0", "an old garden")])
    assert encoded[1:] == ["an old garden"]
    retriever.remove(["zoo#0"])
    assert len(encoded) == 2


def test_updating_a_document_removes_the_end_that_it_had_and_adds_what_is_new(retriever, tiny_model):
    others = {i: t for i, t in TEXTS.items() if not i.startswith("pump#")}
    for number, pumps in enumerate(  # of the main part of the index first, and then of what came since
        ({"pump#0": "an old pump", "pump#1": TEXTS["pump#1"], "pump#9": "a new pump"}, {"pump#0": "an old pump"})
    ):
        retriever.update(chunks_of(pumps))
        assert dict(zip(retriever.index.ids, retriever.index.texts(), strict=True)) == others | pumps, number
        fresh = Retriever.from_chunks(tiny_model, chunks_of(others | pumps), word_weight=retriever.word_weight)
        same = [[i for i, _ in row] for row in found(fresh)]
        assert [[i for i, _ in row] for row in found(retriever)] == same


def test_adding_a_known_chunk_and_changing_an_unknown_one_are_refused(retriever):
    with pytest.raises(ValueError, match=r"already has chunk 'pump#0' .* update\(\)"):
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


@pytest.mark.parametrize("word_weight", [0, 0.5, 3.0, math.inf])
def test_a_score_is_the_sum_of_similarity_and_weighted_words(tiny_model, word_weight):
    weights = WordWeights.learn(QUESTIONS[:10])
    words = LearnedWords(weights, 1.0)
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), words=words, word_weight=word_weight)
    index = retriever.index
    cosines = tiny_model.encode_query(QUESTIONS, normalize_embeddings=True) @ index.vectors.T
    by_words = BM25(weights=weights).fit(index.texts()).scores(QUESTIONS)
    scores = by_words if math.isinf(word_weight) else cosines + word_weight * by_words
    for question, row in zip(QUESTIONS, scores, strict=True):
        hits = retriever.search(question, k=len(TEXTS))
        np.testing.assert_allclose(
            [hit.score for hit in hits], [row[index.position_of[hit.id]] for hit in hits], atol=1e-5
        )
        np.testing.assert_allclose([hit.similarity + hit.words for hit in hits], [hit.score for hit in hits], atol=1e-5)
        found = {hit.id for hit in hits}
        expected = (
            set(index.ids) if not math.isinf(word_weight) else {i for i, s in zip(index.ids, row, strict=True) if s > 0}
        )
        assert found == expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_what_is_evaluated_is_what_is_served(tiny_model):
    relevant = {f"q{i:02}": [next(iter(TEXTS))] for i in range(len(QUESTIONS))}
    data = build(TEXTS, dict(zip(relevant, QUESTIONS, strict=True)), relevant)
    retriever = Retriever.from_dataset(tiny_model, data, words=LearnedWords(WordWeights.learn(QUESTIONS[::2]), 3.0))
    rows = et.TopKEvaluator(data, k=(10,)).evaluate(retriever).per_query
    hits = found(retriever)
    assert [[chunk_id for chunk_id, _ in row] for row in hits] == rows["retrieved"][:]
    np.testing.assert_allclose([[score for _, score in row] for row in hits], rows["scores"][:], atol=1e-6)


@pytest.mark.parametrize("word_weight", [None, 0.0, math.inf])
@pytest.mark.parametrize("shifted", [False, True])
def test_an_evaluation_says_what_words_contribute_and_keeps_it(tiny_model, tmp_path, word_weight, shifted):
    relevant = {f"q{i:02}": [next(iter(TEXTS))] for i in range(len(QUESTIONS))}
    data = build(TEXTS, dict(zip(relevant, QUESTIONS, strict=True)), relevant)
    options = {"words": LearnedWords(WordWeights.learn(QUESTIONS[::2]), 3.0), "word_weight": word_weight}
    retriever = Retriever.from_dataset(tiny_model, data, **options)
    evaluated = retriever
    if shifted:  # an index of other chunks: those of the dataset are indexed for the evaluation
        evaluated = Retriever.from_chunks(
            tiny_model, chunks_of({"a#0": "open"}), **options | {"word_weight": retriever.word_weight}
        )
    evaluation = et.TopKEvaluator(data, k=(10,)).evaluate(evaluated)
    hits = retriever.search_batch(QUESTIONS)
    for row, expected in zip(evaluation.per_query["word_scores"][:], hits, strict=True):
        assert row == pytest.approx([hit.words for hit in expected], abs=1e-6)
    evaluation.save(tmp_path / "result.json")
    again = Evaluation.load(tmp_path / "result.json")
    assert again.per_query["word_scores"][:] == evaluation.per_query["word_scores"][:]
    content = json.loads((tmp_path / "result.json").read_text())
    del content["per_query"]["word_scores"]  # as of a retriever that does not say
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert "word_scores" not in Evaluation.load(tmp_path / "result.json").per_query.column_names


def test_words_contribute_nothing_where_nothing_was_found(retriever):
    texts, positions = retriever.index.texts(), np.array([[0, -1], [-1, 3]])
    scores = retriever.word_scores([texts[0], texts[3]], texts, positions)
    assert (scores > 0).tolist() == [[True, False], [False, True]]


def test_an_evaluation_does_not_encode_the_chunks_again(tiny_model, monkeypatch):
    relevant = {f"q{i:02}": [next(iter(TEXTS))] for i in range(len(QUESTIONS))}
    data = build(TEXTS, dict(zip(relevant, QUESTIONS, strict=True)), relevant)
    retriever = Retriever.from_dataset(tiny_model, data)
    encoded = counting(tiny_model, monkeypatch)
    et.TopKEvaluator(data, k=(10,)).evaluate(retriever)
    assert encoded == []


def test_a_question_without_known_words_is_still_found_by_its_vector(tiny_model):
    both = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    assert [hit.id for hit in both.search("xyz")] == [hit.id for hit in both.with_word_weight(0).search("xyz")]


def test_words_that_were_learned_are_saved_and_no_word_of_a_question_is(tiny_model, tmp_path):
    words = LearnedWords(WordWeights.learn(["where is the zeppelin hangar"]), math.inf)
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), words=words)
    retriever.save(tmp_path / "saved")
    again = Retriever.load(tmp_path / "saved")
    assert again.word_weight == math.inf
    assert found(again) == found(retriever)
    assert again.fingerprint == retriever.fingerprint
    assert not any(b"zeppelin" in path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file())


def test_words_of_another_retriever_are_refused(tiny_model, tmp_path):
    for name in ("one", "two"):
        words = LearnedWords(WordWeights.learn([f"question {name}"]), 3.0)
        Retriever.from_chunks(tiny_model, chunks_of(TEXTS), words=words).save(tmp_path / name)
    words_file = "retriever_words.safetensors"
    shutil.copy(tmp_path / "one" / words_file, tmp_path / "two" / words_file)
    with pytest.raises(ValueError, match="of another retriever"):
        Retriever.load(tmp_path / "two")
    (tmp_path / "two" / words_file).unlink()
    with pytest.raises(FileNotFoundError, match=r"words.safetensors is missing. Copy the whole folder again"):
        Retriever.load(tmp_path / "two")


# Damaged folders

PARTS = ["retriever.json", "retriever_words.safetensors", "model.safetensors", "modules.json"]
PARTS += [f"index/{name}" for name in ("index.json", "chunks.arrow", "vectors.safetensors", "words.safetensors")]
NEEDED = [part for part in PARTS if not part.endswith("index/words.safetensors")]  # these are counted again


@pytest.fixture
def saved(tiny_model, tmp_path):
    words = LearnedWords(WordWeights.learn(QUESTIONS), 3.0)
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), words=words)
    retriever.search("open")  # counts the words
    retriever.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_was_cut_off_is_an_error_that_names_it(saved, part, share):
    content = (saved / part).read_bytes()
    (saved / part).write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        (ValueError, FileNotFoundError), match=re.escape(Path(part).name.partition(".")[0]) + "|weights|model"
    ):
        Retriever.load(saved)


@pytest.mark.parametrize("part", NEEDED)
def test_a_file_that_is_missing_is_an_error(saved, part):
    (saved / part).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=str(saved)):
        Retriever.load(saved)


def test_a_whole_index_without_its_counted_words_counts_them_again(saved):
    expected = found(Retriever.load(saved))
    (saved / "index" / "words.safetensors").unlink()
    assert found(Retriever.load(saved)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"word_weight": -1},
        {"word_weight": "nan"},
        {"word_weight": None},
        {"multiple": -1},
        {"context": ["password"]},
        {"num_questions": 0},
        {"words_fingerprint": ""},
    ],
)
def test_settings_that_cannot_be_are_refused_or_harmless(saved, settings):
    path = saved / "retriever.json"
    content = json.loads(path.read_text()) | settings if settings else settings
    path.write_text(json.dumps(content))
    if settings == {"words_fingerprint": ""}:  # its words are not read
        assert Retriever.load(saved).words.weights is None
        return
    with pytest.raises(ValueError, match=r"damaged or incomplete.* Copy the whole folder again"):
        Retriever.load(saved)


@pytest.mark.parametrize("name", ["chunks.arrow", "vectors.safetensors", "words.safetensors"])
def test_no_byte_of_an_index_changes_unnoticed(saved, name):
    path = saved / "index" / name
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 25).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=f"{name} is damaged or incomplete"):
            ChunkIndex.load(path.parent)
    path.write_bytes(content)
    assert len(ChunkIndex.load(path.parent)) == len(TEXTS)


@pytest.mark.parametrize("name", ["words.safetensors", "graph.faiss"])
def test_words_and_graph_of_other_chunks_are_refused(tiny_model, tmp_path, name):
    pytest.importorskip("faiss")
    for folder, texts in (("one", ["the pump", "the door", "the key"]), ("two", ["the lamp", "the roof", "a pump"])):
        index = Retriever.from_chunks(tiny_model, chunks_of({f"{i}#0": text for i, text in enumerate(texts)})).index
        _ = index.words, index.graph
        index.save(tmp_path / folder)
    shutil.copy(tmp_path / "one" / name, tmp_path / "two" / name)
    with pytest.raises(ValueError, match=f"{name} is damaged or incomplete"):
        ChunkIndex.load(tmp_path / "two")


@pytest.mark.parametrize("files", [[], {}, {"../../retriever.json": "0"}, {"chunks.arrow": "0"}, None])
def test_a_list_of_files_that_is_none_of_an_index_is_refused(saved, files):
    path = saved / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    with pytest.raises(ValueError, match=r"index.json is damaged or incomplete .*files="):
        Retriever.load(saved)


def rewritten(path, **changed):
    arrays = load_arrays(path)
    save_arrays({name: changed[name](array) if name in changed else array for name, array in arrays.items()}, path)


@pytest.mark.parametrize(
    "changed",
    [
        {"columns": lambda a: a + np.int32(10**6)},
        {"columns": lambda a: -a - 1},
        {"starts": lambda a: np.append(a[:-1], np.int32(10**8))},
        {"starts": lambda a: a[::-1].copy()},
        {"starts": lambda a: a[:-3]},
        {"hashes": lambda a: a[::-1].copy()},
        {"hashes": lambda a: a[:5]},
        {"counts": lambda a: a.astype(np.float64)},
        {"counts": lambda a: a[:-1]},
    ],
)
def test_hostile_word_counts_are_an_error_and_no_crash(saved, changed):
    rewritten(saved / "index" / "words.safetensors", **changed)
    sign(saved / "index")
    with pytest.raises(ValueError, match=r"words.safetensors is damaged or incomplete"):
        Retriever.load(saved)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32])
def test_vectors_of_another_type_are_an_error(saved, kind):
    rewritten(saved / "index" / "vectors.safetensors", vectors=lambda a: a.astype(kind))
    sign(saved / "index")
    with pytest.raises(ValueError, match=r"vectors.safetensors is damaged .*type"):
        Retriever.load(saved)


def test_offsets_of_texts_beyond_their_end_are_an_error_and_no_crash(saved):
    path = saved / "index" / "chunks.arrow"
    table = pyarrow.ipc.open_file(str(path)).read_all()
    offsets = table["text"].combine_chunks().buffers()[1].to_pybytes()[: 4 * (len(table) + 1)]
    content = path.read_bytes()
    assert content.count(offsets) == 1
    hostile = np.frombuffer(offsets, np.int32) + np.int32(2**30)
    path.write_bytes(content.replace(offsets, hostile.tobytes()))
    sign(path.parent)
    with pytest.raises(ValueError, match=r"chunks.arrow is damaged or incomplete"):
        Retriever.load(saved)


def test_a_damaged_retriever_can_be_saved_over(saved, retriever):
    (saved / "retriever.json").write_text('{"model_fing')
    retriever.save(saved)
    assert found(Retriever.load(saved)) == found(retriever)


def test_a_retriever_without_learned_words_replaces_one_with_them(saved, retriever):
    retriever.save(saved)
    assert not (saved / "retriever_words.safetensors").exists()
    assert found(Retriever.load(saved)) == found(retriever)


def test_the_words_of_a_changed_corpus_are_those_of_one_made_anew(retriever, tiny_model):
    retriever.search("check the pump")  # counts the words
    retriever.add([chunk("aa#0", "the xylophone of the pump"), chunk("zoo#0", "a new garden")])
    retriever.remove(["valve#1"])
    texts = {i: t for i, t in TEXTS.items() if i != "valve#1"} | {
        "aa#0": "the xylophone of the pump",
        "zoo#0": "a new garden",
    }
    fresh = Retriever.from_chunks(tiny_model, chunks_of(texts), word_weight=retriever.word_weight)
    questions = [*QUESTIONS, "a xylophone"]
    np.testing.assert_array_equal(retriever.index.words.scores(questions), fresh.index.words.scores(questions))


def test_chunks_added_by_threads_at_once_are_all_there(retriever):
    threads = [
        threading.Thread(
            target=lambda i=i: [retriever.add([chunk(f"new{i}-{j}#0", f"a garden {i} {j}")]) for j in range(5)]
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"new{i}-{j}#0" for i in range(8) for j in range(5)} <= set(retriever.index.ids)


def random_index(num_chunks, dim=32):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_chunks, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_graph_finds_nearly_what_an_exact_search_finds(tiny_model, tmp_path):
    pytest.importorskip("faiss")
    index = Retriever.from_chunks(tiny_model, chunks_of({f"{i:04}#0": f"pump {i}" for i in range(2000)})).index
    object.__setattr__(index, "vectors", random_index(2000))
    queries, questions = random_index(50)[::-1].copy(), [f"pump {i}" for i in range(50)]
    for word_weight in (0, 1.0):
        fusion = Fusion(word_weight)
        exact = fusion.rank(index, questions, queries, 10)
        approximate = fusion.rank(index, questions, queries, 10, approximate=True)
        same = [len({*a} & {*b}) for a, b in zip(exact.positions.tolist(), approximate.positions.tolist(), strict=True)]
        assert sum(same) >= 0.99 * 10 * len(queries)
        where = exact.positions == approximate.positions
        np.testing.assert_allclose(exact.scores[where], approximate.scores[where], atol=1e-5)
    index.save(tmp_path / "index")
    assert ChunkIndex.load(tmp_path / "index").graph.faiss.ntotal == 2000


def test_a_changed_corpus_gets_a_graph_of_its_own(tiny_model):
    pytest.importorskip("faiss")
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), approximate=True)
    before = [hit.id for hit in retriever.search("check the cold pump", k=3)]
    retriever.remove(before[:1])
    assert [hit.id for hit in retriever.search("check the cold pump", k=2)] == before[1:]
    graph = retriever.index.graph
    retriever.add([chunk("aa#0", "check the cold pump")])
    assert retriever.index.graph.faiss.ntotal == graph.faiss.ntotal + 1  # one node more, not a graph made anew
    assert retriever.search("check the cold pump", k=1)[0].id == "aa#0"
    assert len(retriever.search("check the cold pump", k=100)) == len(TEXTS)


def test_without_faiss_the_command_to_install_it_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), approximate=True)
    with pytest.raises(OptionalDependencyError, match=r"embedtune\[faiss\]"):
        retriever.search("open")


@pytest.mark.slow
def test_two_processes_encode_what_one_encodes(tiny_model):
    one = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    two = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), devices=["cpu", "cpu"])
    np.testing.assert_allclose(one.index.vectors, two.index.vectors, atol=1e-6)


def test_a_graph_whose_chunks_are_all_removed_takes_new_ones(tiny_model):
    pytest.importorskip("faiss")
    chunks = chunks_of(TEXTS)
    retriever = Retriever.from_chunks(tiny_model, chunks[:3], approximate=True, word_weight=0)
    retriever.search(QUESTIONS[0])
    retriever.remove([one.id for one in chunks[:3]])
    retriever.add(chunks[3:6])
    retriever.add(chunks[6:8])
    expected = Retriever.from_chunks(tiny_model, chunks[3:8], word_weight=0)
    assert [hit.id for hit in retriever.search(QUESTIONS[0])] == [hit.id for hit in expected.search(QUESTIONS[0])]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("word_weight", [0, 2, math.inf])
@pytest.mark.parametrize(("questions", "k"), [(["pump"], 0), (["pump"], 4), ([], 1)])
def test_a_ranking_that_cannot_be_is_refused_alike_by_every_kind_of_search(
    tiny_model, approximate, word_weight, questions, k
):
    pytest.importorskip("faiss")
    chunks = chunks_of(TEXTS)[:3]
    retriever = Retriever.from_chunks(tiny_model, chunks, approximate=approximate, word_weight=word_weight)
    with pytest.raises(ValueError, match="out of range for 3 documents" if questions else "no queries"):
        retriever.rank(questions, retriever.index.texts(), k)


def test_half_a_character_in_a_question_is_no_trouble(retriever):
    assert [hit.id for hit in retriever.search("pump \ud83d")] == [hit.id for hit in retriever.search("pump \ufffd")]


def test_chunks_to_remove_may_come_from_a_generator(retriever):
    before = len(retriever)
    retriever.remove(chunk_id for chunk_id in list(TEXTS)[:2])
    assert len(retriever) == before - 2


def test_the_number_of_questions_learned_from_is_part_of_the_fingerprint_and_not_changed_unnoticed(
    tiny_model, tmp_path
):
    questions = ["where is the pump"]
    of = [
        Retriever.from_chunks(tiny_model, chunks_of(TEXTS), words=LearnedWords(WordWeights.learn(asked)), word_weight=1)
        for asked in (questions, [*questions, "???"])
    ]
    assert of[0].fingerprint != of[1].fingerprint
    of[0].save(tmp_path / "saved")
    path = tmp_path / "saved" / "retriever.json"
    path.write_text(path.read_text().replace('"num_questions": 1', '"num_questions": 1000'))
    with pytest.raises(ValueError, match="another retriever"):
        Retriever.load(tmp_path / "saved")


def test_chunks_that_are_less_similar_than_nothing_are_found_by_a_graph_too(retriever):
    pytest.importorskip("faiss")
    index = ChunkIndex(retriever.index.chunks, random_index(len(retriever)), "", "cosine")
    exact, approximate = (
        Fusion(0.1).rank(index, QUESTIONS, random_index(len(QUESTIONS)), len(index), approximate=one)
        for one in (False, True)
    )
    assert (exact.scores < 0).any()
    np.testing.assert_array_equal(approximate.positions, exact.positions)


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("is_saved_between", [False, True])
def test_a_retriever_that_grew_from_nearly_nothing_weighs_words_as_one_made_anew(
    tiny_model, tmp_path, start, is_saved_between
):
    chunks = chunks_of(TEXTS)
    retriever = Retriever.from_chunks(tiny_model, chunks[:start])
    if is_saved_between:
        retriever.save(tmp_path / "saved")
        retriever = Retriever.load(tmp_path / "saved")
    for size, more in ((3, chunks[start:3]), (5, chunks[3:5]), (80, chunks[5:80])):
        retriever.add(more)
        fresh = Retriever.from_chunks(tiny_model, chunks[:size])
        assert retriever.word_weight == pytest.approx(fresh.word_weight, rel=1e-4)
        assert [[i for i, _ in row] for row in found(retriever)] == [[i for i, _ in row] for row in found(fresh)]
    retriever.add([chunk("zoo#0", "a new garden")])
    assert retriever.word_weight == pytest.approx(fresh.word_weight, rel=1e-4)  # it is settled


def test_a_word_weight_that_was_chosen_stays(tiny_model):
    retriever = Retriever.from_chunks(tiny_model, [], word_weight=1.5)
    retriever.add(chunks_of(TEXTS))
    assert retriever.word_weight == 1.5


@pytest.mark.parametrize("k", [0, -1, 2.5, float("nan"), True, "3"])
def test_a_k_that_is_no_count_is_refused(retriever, k):
    with pytest.raises((ValueError, TypeError), match=f"k={k!r} must be"):
        retriever.search("open", k=k)
    assert len(retriever.search("open", k=np.int64(3))) == 3
