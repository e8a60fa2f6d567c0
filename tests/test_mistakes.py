"""What a new user gets wrong: each message names what was given, and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset

import embedtune as et


class Words:
    def token_starts(self, text):
        import numpy as np

        return np.array([match.start() for match in re.finditer(r"\S+", text)])


def dataset():
    pairs = [(f"press {i}", [f"how to press {i}"]) for i in ("pump", "door", "lamp", "roof")]
    return et.RetrievalDataset.from_pairs(pairs, test_size=0.5, dev_size=0)


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'handbok'.*a list"):
        et.read_documents("handbok")


def test_a_folder_with_nothing_to_read(tmp_path):
    (tmp_path / "a.odt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no readable file. Supported are .txt.*1 with .odt. Convert those"):
        et.read_documents(tmp_path)
    with pytest.raises(ValueError, match=r"a.odt cannot be read: the supported extensions .* Convert it"):
        et.read_documents(tmp_path / "a.odt")


@pytest.mark.parametrize("options", [{"max_tokens": "400"}, {"overlap": 0.1}])
def test_a_size_that_is_no_whole_number(options):
    (name,), (value,) = options.keys(), options.values()
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r} must be a whole number")):
        et.chunk_documents([et.Document("a", "text")], tokenizer=Words(), **options)


@pytest.mark.parametrize(
    "name", ["./out/model", "/nowhere/model", "~/model", "out/handbook/model", "C:\\model", "../model"]
)
def test_a_model_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no folder {name!r}. Pass the folder of a saved model")):
        et.load_model(name)


def test_a_file_of_a_model_in_the_place_of_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*model.safetensors'"):
        et.load_model(tmp_path / "model.safetensors")


def test_no_model_at_all():
    with pytest.raises(TypeError, match=r"model is a NoneType. Pass a name on the Hub"):
        et.load_model(None)


def test_a_number_of_numpy_is_a_whole_number():
    import numpy as np

    assert len(et.chunk_documents([et.Document("a", "one two")], tokenizer=Words(), max_tokens=np.int64(2))) == 1


def test_the_name_of_a_language_model_in_its_place():
    chunk = et.Chunk("a#0", "a", "text", 0, 4)
    with pytest.raises(TypeError, match=r"llm is a str. Pass AnthropicLLM"):
        et.generate_questions([chunk], "claude-sonnet-5-5")


def test_an_unknown_split():
    with pytest.raises(ValueError, match=re.escape("no split 'tset'; this dataset has ['train', 'test']")):
        et.TopKEvaluator(dataset(), "tset")


def test_a_k_beyond_the_corpus():
    with pytest.raises(ValueError, match=r"k=10 is larger than the corpus of 4 chunks. Choose values"):
        et.TopKEvaluator(dataset())


def test_too_few_chunks():
    with pytest.raises(ValueError, match="1 chunks: retrieval needs at least 2"):
        et.RetrievalDataset.from_pairs([("press", ["how to press"])])
    with pytest.raises(ValueError, match=r"2 document groups, too few for 3 splits. Add documents, set dev_size=0"):
        et.RetrievalDataset.from_pairs([("press it", ["how to press"]), ("open the door", ["how to open"])])


def test_columns_of_other_names():
    with pytest.raises(ValueError, match=r"columns \['context', 'query'\].*chunk_column=.*question_column="):
        et.RetrievalDataset.from_pairs(Dataset.from_dict({"context": ["a"], "query": ["b"]}))
    with pytest.raises(ValueError, match=r"no column 'text'. It has 'content'.*text_column="):
        et.read_documents(Dataset.from_dict({"content": ["a"]}))


@pytest.mark.parametrize(("llm", "variable"), [("AnthropicLLM", "ANTHROPIC_API_KEY"), ("OpenAILLM", "OPENAI_API_KEY")])
def test_a_missing_key(llm, variable, monkeypatch, tmp_path):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a client may look for credentials
    with pytest.raises(RuntimeError, match=f"^There is no API key: set {variable}, or pass a client"):
        getattr(et, llm)("claude-sonnet-5-5" if llm == "AnthropicLLM" else "gpt-5").prepare()


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    evaluation = et.TopKEvaluator(dataset(), k=(1,)).evaluate(et.BM25())
    for write, name in ((evaluation.save, "a.json"), (dataset().save_to_disk, "data")):
        with pytest.raises(
            FileExistsError, match=rf"Cannot be written \(File exists\). Choose another path: .*file/{name}'"
        ):
            write(tmp_path / "file" / name)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    evaluation = et.TopKEvaluator(dataset(), k=(1,)).evaluate(et.BM25())
    verdict = et.compare(evaluation, evaluation, num_resamples=10)
    with pytest.raises(IsADirectoryError, match=rf"Choose another path: '{tmp_path}'"):
        verdict.to_html(tmp_path)
    assert [path for path in tmp_path.parent.iterdir() if path.name.startswith(f".{tmp_path.name}")] == []


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", f"{options['dir']}/.temporary")

    evaluation = et.TopKEvaluator(dataset(), k=(1,)).evaluate(et.BM25())
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    for write, name in ((evaluation.save, "a.json"), (dataset().save_to_disk, "data")):
        with pytest.raises(PermissionError, match=rf"Permission denied\). Choose another path: '{tmp_path}/{name}'"):
            write(tmp_path / name)


@pytest.mark.parametrize("name", ["minilm", Path("out/model")])
def test_a_models_name_in_the_place_of_the_model(name):
    with pytest.raises(TypeError, match=re.escape(f"Load it first: load_model({str(name)!r})")):
        et.EmbeddingTrainer(name, data=dataset())


def test_pairs_in_the_place_of_a_dataset(tiny_model):
    with pytest.raises(TypeError, match=r"data is a list. Make a RetrievalDataset with build_dataset"):
        et.EmbeddingTrainer(tiny_model, data=[("press", "how to press")])


def test_a_loss_of_another_library():
    with pytest.raises(ValueError, match=r"loss='mnrl' is not one of .*Pass your own loss to the trainer"):
        et.TuningArguments("out", loss="mnrl")


def test_strings_in_the_place_of_records():
    chunks = [et.Chunk("a#0", "a", "Press", 0, 5), et.Chunk("b#0", "b", "Turn", 0, 4)]
    questions = [et.Question("q", "how?", ("a#0",)), et.Question("r", "what?", ("b#0",))]
    with pytest.raises(TypeError, match=r"questions\[0\] is a str, not a Question. .*generate_questions.*from_pairs"):
        et.build_dataset(chunks, ["how?"])
    with pytest.raises(TypeError, match=r"chunks\[0\] is a Document, not a Chunk. .*chunk_documents"):
        et.build_dataset([et.Document("a", "text"), et.Document("b", "text")], questions)
    with pytest.raises(TypeError, match=r"chunks\[0\] is a Question, not a Chunk"):
        et.build_dataset(questions, chunks)


def test_the_id_of_one_chunk_in_the_place_of_several():
    chunks = [et.Chunk("a#0", "a", "Press", 0, 5), et.Chunk("b#0", "b", "Turn", 0, 4)]
    with pytest.raises(
        TypeError, match=re.escape("Question 'q' has chunk_ids='a#0', a string. Pass a tuple: ('a#0',)")
    ):
        et.build_dataset(chunks, [et.Question("q", "how?", "a#0")])


def test_an_evaluator_of_something_else_than_a_dataset():
    with pytest.raises(TypeError, match=r"data is a list. Make a RetrievalDataset with build_dataset"):
        et.TopKEvaluator([et.Chunk("a#0", "a", "Press", 0, 5)])


@pytest.mark.parametrize("name", ["minilm", Path("out/model")])
@pytest.mark.parametrize(
    "use",
    [
        lambda model: et.TopKEvaluator(dataset(), k=(1,)).evaluate(model),
        lambda model: et.push_to_hub(model, "my-org/model", dry_run=True),
        et.check_model,
    ],
    ids=["evaluate", "push_to_hub", "check_model"],
)
def test_a_models_name_where_a_model_is_used(use, name):
    with pytest.raises(TypeError, match=re.escape(f"Load it first: load_model({str(name)!r})")):
        use(name)


@pytest.mark.parametrize("name", ["bm25", "BM25"])
def test_bm25_by_its_name_is_understood(name):
    evaluator = et.TopKEvaluator(dataset(), k=(1,))
    found, expected = evaluator.evaluate(name), evaluator.evaluate(et.BM25())
    assert (found.name, found.model, found.metrics) == (expected.name, expected.model, expected.metrics)


@pytest.mark.parametrize(
    ("chunks", "way"),
    [([et.Chunk("a#0", "a", "Press", 0, 5)], r"a list. Call Retriever.from_chunks"), (None, "Retriever.from_dataset")],
)
def test_a_retriever_of_what_is_not_encoded(tiny_model, chunks, way):
    with pytest.raises(TypeError, match=way):
        et.Retriever(tiny_model, chunks or dataset())


def test_several_questions_where_one_is_asked_and_one_where_several_are(tiny_model):
    retriever = et.Retriever.from_dataset(tiny_model, dataset())
    with pytest.raises(TypeError, match=r"takes one question, got a list. For several, call search_batch\(\)"):
        retriever.search(["how?", "where?"])
    with pytest.raises(TypeError, match=r"takes a list of questions, got the string 'how\?'. For one, call search\(\)"):
        retriever.search_batch("how?")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_minilm_without_the_hub_names_the_package_that_has_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"the Hub cannot be reached.*load_model\('minilm'\)"):
        et.load_model(name)


@pytest.mark.parametrize(("max_tokens", "warns"), [(64, False), (65, True)])
def test_chunks_that_the_model_would_cut_are_reported_when_they_are_made(tiny_model, caplog, max_tokens, warns):
    et.chunk_documents([et.Document("a", "press both")], tokenizer=tiny_model, max_tokens=max_tokens)
    assert (f"max_tokens={max_tokens} is more than the 64 tokens that this model reads" in caplog.text) == warns


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"contains no model: neither modules.json nor config.json. Pass the folder"
    ):
        et.load_model(tmp_path)


def test_the_folder_of_a_run_in_the_place_of_its_model(tmp_path, tiny_model):
    for name in ("model", "checkpoint-10"):
        tiny_model.save_pretrained(str(tmp_path / name))
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"contains no model.* Its subfolders contain models: checkpoint-10, model"
    ):
        et.load_model(tmp_path)


def test_a_misspelt_name_is_put_right():
    done = subprocess.run(
        [sys.executable, "-c", "import embedtune as et; et.load_models"], capture_output=True, text=True, check=False
    )
    assert "Did you mean: 'load_model'?" in done.stderr


def test_checkpointing_of_activations_under_its_older_name_gives_no_warning():
    args = et.TuningArguments("out", gradient_checkpointing=True, use_cpu=True)
    assert args.gradient_checkpointing
    assert getattr(args, "activation_checkpointing", True)
    assert not et.TuningArguments("out", gradient_checkpointing=False, use_cpu=True).gradient_checkpointing


def test_nothing_to_train_on(tiny_model, tmp_path):
    nothing = dataset().pairs("train").select([])
    args = et.TuningArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"train_dataset has no rows. Add questions"):
        et.EmbeddingTrainer(tiny_model, args, train_dataset=nothing)
    with pytest.raises(ValueError, match=r"train_dataset\['b'\] has no rows"):
        et.EmbeddingTrainer(tiny_model, args, train_dataset={"a": dataset().pairs("train"), "b": nothing})


@pytest.mark.parametrize(
    ("loss", "batch_size", "warns"), [("in-batch", 1, True), ("in-batch", 2, False), ("triplet", 1, False)]
)
def test_a_batch_of_one_row_whose_loss_needs_others(tiny_model, tmp_path, caplog, loss, batch_size, warns):
    args = et.TuningArguments(str(tmp_path), use_cpu=True, loss=loss, per_device_train_batch_size=batch_size)
    et.EmbeddingTrainer(tiny_model, args, data=dataset())
    assert ("the model learns nothing. Set per_device_train_batch_size" in caplog.text) == warns
