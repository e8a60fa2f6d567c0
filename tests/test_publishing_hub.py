"""push_to_hub, with the real client against a server on loopback."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hub_server import serving
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family, randomize
from sentence_transformers import SentenceTransformer
from test_trainer import make_data

import embedtune as et
from embedtune.models.selfcheck import same_vectors
from embedtune.publishing import hub as publishing_hub
from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights

# huggingface_hub calls httpx in a way that httpx will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TEXTS = ["open the pump", "check the valve and press 3 to open it", "lamp"]
REPO = "models/me/handbook"
PLAIN = {
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
ELSEWHERE = """
import json, sys
sys.modules["embedtune"] = sys.modules["peft"] = None
from sentence_transformers import SentenceTransformer
texts, repos = json.loads(sys.argv[1]), sys.argv[2:]
for repo in repos:
    model = SentenceTransformer(repo, device="cpu")
    print("VECTORS", json.dumps([model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]))
"""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that this process talks to, without Xet and with a cache of its own."""
    with serving() as (hub, endpoint):
        hub.endpoint = endpoint
        for name, value in (("ENDPOINT", endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it would remember the address of an older server
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    gte_qwen2_repository(root / "gte")
    jina_hf_repository(root / "jina")
    return root


def vectors(model):
    return torch.tensor([model.encode_query(TEXTS).tolist(), model.encode_document(TEXTS).tolist()])


def lora(folders):
    model = et.load_model(folders / "gte", lora=True, max_seq_length=128, device="cpu")
    randomize(model, 1, only="lora_")
    return model


def jina(folders, **options):
    model = load_family(folders / "jina", max_seq_length=128, device="cpu", **options)
    randomize(model, 1, only="lora_")
    return model


def test_plain_sentence_transformers_loads_what_was_pushed_by_its_name(server, folders, tiny_model, tmp_path):
    models = {
        "me/plain": tiny_model,
        "me/lora": lora(folders),
        "me/two": jina(folders),
        "me/one": jina(folders, mode="shared"),
    }
    for repo, model in models.items():
        et.push_to_hub(model, repo, verify=False)
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(TEXTS), *models]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [
        json.loads(line.removeprefix("VECTORS ")) for line in done.stdout.splitlines() if line.startswith("VECTORS")
    ]
    for (repo, model), other in zip(models.items(), found, strict=True):
        assert (vectors(model) - torch.tensor(other)).abs().max() < 1e-5, repo


def test_exactly_the_files_that_are_needed_arrive_in_one_private_commit(server, tiny_model, folders):
    publication = et.push_to_hub(tiny_model, "me/handbook")
    assert set(server.files[REPO]) == set(publication.files) == PLAIN
    assert {name: len(content) for name, content in server.files[REPO].items()} == publication.files
    assert server.files[REPO]["README.md"].decode() == publication.card
    assert server.private == {REPO: True}
    assert (server.num_commits, publication.revision) == (1, server.revision)
    downloads = [path.partition("/resolve/")[2].partition("/")[0] for _, path in server.requests if "/resolve/" in path]
    assert set(downloads) == {publication.revision}, "what is verified is this commit"
    everything = b"".join(server.files[REPO].values())
    assert b"hf_secret" not in everything
    assert str(folders.parent).encode() not in everything, "no path of this machine"


def test_a_dry_run_shows_everything_and_asks_the_hub_nothing(server, tiny_model, data):
    dry = et.push_to_hub(tiny_model, "me/handbook", data=data, dry_run=True)
    assert (server.requests, dry.revision) == ([], None)
    pushed = et.push_to_hub(tiny_model, "me/handbook", data=data, verify=False)
    assert (list(pushed.files), pushed.card) == (list(dry.files), dry.card)
    printed = str(dry)
    assert all(name in printed for name in PLAIN)
    assert dry.card in printed
    assert "dry run: nothing was uploaded" in printed
    assert not [text for text in data.corpus_texts.values() if text in dry.card]


def test_a_push_that_fails_half_way_changes_nothing_and_goes_on_where_it_was(server, folders):
    model = jina(folders)
    server.max_uploads = 1
    with pytest.raises((RuntimeError, HfHubHTTPError)):
        et.push_to_hub(model, "me/handbook")
    assert server.files[REPO] == {}
    (arrived,) = server.uploads
    server.max_uploads = None
    publication = et.push_to_hub(model, "me/handbook")
    assert len(server.uploads) == len(set(server.uploads)) == 2, "what had arrived was not sent again"
    assert arrived in server.uploads
    assert publication.revision == server.revision


def test_a_refused_commit_leaves_the_older_model_in_its_place(server, tiny_model, folders):
    first = et.push_to_hub(tiny_model, "me/handbook", verify=False)
    server.refuse_commits = True
    with pytest.raises(HfHubHTTPError, match="403"):
        et.push_to_hub(lora(folders), "me/handbook")
    assert {name: len(content) for name, content in server.files[REPO].items()} == first.files


def test_a_new_model_leaves_nothing_of_the_old_one_that_a_loader_would_read(server, tiny_model, folders):
    et.push_to_hub(jina(folders), "me/handbook", adapters=True, verify=False)
    server.files[REPO] |= {"pytorch_model.bin": b"old", "LICENSE": b"mine", ".gitattributes": b"*.bin filter=lfs"}
    et.push_to_hub(tiny_model, "me/handbook")
    assert set(server.files[REPO]) == PLAIN | {"LICENSE", ".gitattributes"}


def test_the_adapters_are_pushed_when_asked_for(folders):
    model = lora(folders)
    assert not [name for name in et.push_to_hub(model, "me/a", dry_run=True).files if "adapter" in name]
    files = et.push_to_hub(model, "me/a", adapters=True, dry_run=True).files
    assert [name for name in files if "adapter" in name] == [
        "adapters/tuned/adapter_config.json",
        "adapters/tuned/adapter_model.safetensors",
    ]


def test_nothing_is_pushed_to_a_public_repository_unless_that_is_asked_for(server, tiny_model):
    server.create(REPO, private=False)
    with pytest.raises(ValueError, match="me/handbook is public"):
        et.push_to_hub(tiny_model, "me/handbook")
    assert server.files[REPO] == {}
    et.push_to_hub(tiny_model, "me/handbook", private=False, verify=False)
    assert set(server.files[REPO]) == PLAIN


def test_a_model_that_fails_its_check_does_not_leave_the_machine(server, folders):
    model = et.load_model(folders / "gte", max_seq_length=128, device="cpu")
    model.config.is_causal = True
    with pytest.raises(ValueError, match="causal, but declared bidirectional"):
        et.push_to_hub(model, "me/handbook")
    assert REPO not in server.files


def test_what_arrived_is_compared(server, tiny_model, monkeypatch):
    def damaged(name, model, uploaded):
        with torch.no_grad():
            next(uploaded.parameters()).add_(0.5 * torch.randn_like(next(uploaded.parameters())))
        return same_vectors(name, model, uploaded)

    monkeypatch.setattr(publishing_hub, "same_vectors", damaged)
    with pytest.raises(RuntimeError, match="differs from the one in memory: differ by"):
        et.push_to_hub(tiny_model, "me/handbook")


def test_files_that_are_not_on_the_list_are_refused(tiny_model, monkeypatch):
    original = type(tiny_model[1]).save

    def pickles(self, path, *args, **kwargs):
        original(self, path, *args, **kwargs)
        torch.save({}, f"{path}/pytorch_model.bin")

    monkeypatch.setattr(type(tiny_model[1]), "save", pickles)
    with pytest.raises(ValueError, match=r"needs \['1_Pooling/pytorch_model.bin'\]"):
        et.push_to_hub(tiny_model, "me/handbook", dry_run=True)


def test_the_model_is_not_changed(tiny_model):
    before = dict(tiny_model.model_card_data.__dict__)
    et.push_to_hub(tiny_model.train(), "me/handbook", dry_run=True)
    assert tiny_model.training
    assert type(tiny_model) is SentenceTransformer
    assert tiny_model.model_card_data.__dict__ == before


def test_a_verdict_on_other_data_is_refused(tiny_model, data):
    evaluation = et.TopKEvaluator(data, k=(1, 3)).evaluate(et.BM25())
    verdict = et.compare(evaluation, evaluation, num_resamples=10)
    et.push_to_hub(tiny_model, "me/handbook", verdict=verdict, data=data, dry_run=True)
    with pytest.raises(ValueError, match="is about other data"):
        et.push_to_hub(tiny_model, "me/handbook", verdict=verdict, data=make_data(seed=9), dry_run=True)


@pytest.mark.parametrize(
    ("repo_id", "options", "message"),
    [
        ("handbook", {}, "repo_id='handbook' must have the form 'organisation/name'"),
        ("me/handbook", {"adapters": True}, "adapters=True, but the model has no adapters"),
        ("me/handbook", {"num_examples": 3}, "num_examples=3 quotes training questions: pass data="),
    ],
)
def test_bad_arguments_are_named(tiny_model, repo_id, options, message):
    with pytest.raises(ValueError, match=message):
        et.push_to_hub(tiny_model, repo_id, dry_run=True, **options)


# Retrievers

QUESTIONS = ["where is the quokkaxyl of the pump", "who may open the vexillum", "when to check the zygomorph lamp"]


def chunks_of(texts=TEXTS):
    return [et.Chunk(f"c#{i}", "c", text, 0, len(text), title="Handbook") for i, text in enumerate(texts)]


def a_retriever(model, **options):
    words = LearnedWords(WordWeights.learn(QUESTIONS), 5.0)
    return et.Retriever.from_chunks(model, chunks_of(), context=["title"], **{"words": words, **options})


def scores(retriever):
    return [
        [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
        for hits in retriever.search_batch([*QUESTIONS, *TEXTS])
    ]


@pytest.mark.parametrize("options", [{}, {"word_weight": 0.0}, {"word_weight": math.inf}, {"words": None}])
def test_a_retriever_is_loaded_back_with_equal_scores_and_its_model_by_plain_sentence_transformers(
    server, tiny_model, tmp_path, options
):
    retriever = a_retriever(tiny_model, **options)
    publication = et.push_to_hub(retriever, "me/handbook")
    learned = {"retriever.json"} | ({"retriever_words.safetensors"} if retriever.words.weights else set())
    assert set(server.files[REPO]) == set(publication.files) == PLAIN | learned
    assert server.private == {REPO: True}
    again = et.Retriever.load("me/handbook", chunks=chunks_of())
    assert scores(retriever) == scores(again)
    assert again.fingerprint == retriever.fingerprint
    plain = SentenceTransformer("me/handbook", device="cpu", cache_folder=str(tmp_path))
    assert torch.equal(vectors(plain), vectors(tiny_model))


def test_a_retriever_with_a_lora_is_loaded_back_with_equal_scores(server, folders):
    retriever = a_retriever(lora(folders))
    et.push_to_hub(retriever, "me/handbook")
    assert scores(et.Retriever.load("me/handbook", chunks=chunks_of())) == scores(retriever)


def test_without_chunks_a_published_retriever_asks_for_them(server, tiny_model):
    et.push_to_hub(a_retriever(tiny_model), "me/handbook", verify=False)
    with pytest.raises(FileNotFoundError, match=r"without its chunks.*chunks=chunks"):
        et.Retriever.load("me/handbook")


def test_neither_chunks_nor_questions_are_in_what_is_uploaded(server, tiny_model):
    et.push_to_hub(a_retriever(tiny_model), "me/handbook", verify=False)
    everything = b"".join(server.files[REPO].values()).lower()
    rare = ["quokkaxyl", "vexillum", "zygomorph", "Handbook\n"]  # words that the tokenizer does not have
    assert not [text for text in [*QUESTIONS, *TEXTS[:2], *rare] if text.lower().encode() in everything]


def test_the_card_of_a_retriever_says_how_to_use_it_and_what_the_hashes_hide(tiny_model):
    retriever = a_retriever(tiny_model)
    card = et.push_to_hub(retriever, "me/handbook", dry_run=True).card
    assert "et.Retriever.load('me/handbook', chunks=chunks)" in card
    assert "SentenceTransformer('me/handbook')" in card
    assert f"`score = similarity + {retriever.word_weight:.6g} * words`" in card
    assert "whoever hashes a dictionary learns" in card
    assert "put before their texts: title" in card
    assert "Retriever" not in et.push_to_hub(tiny_model, "me/handbook", dry_run=True).card


def test_the_formula_of_the_card_computes_the_scores(tiny_model):
    """With sparse vectors alone, as a reader of the card would write it."""
    retriever = a_retriever(tiny_model, word_weight=math.inf)
    texts = [f"Handbook\n{text}" for text in TEXTS]
    documents = [Counter(hashed_tokens(text).tolist()) for text in texts]
    asked = [set(hashed_tokens(question).tolist()) for question in QUESTIONS]
    mean = sum(document.total() for document in documents) / len(documents)

    def idf(token):
        d = sum(token in document for document in documents)
        return math.log(1 + (len(documents) - d + 0.5) / (d + 0.5))

    def weight(token):
        q = sum(token in question for question in asked)
        return math.log(1 + (len(asked) - q + 0.5) / (q + 0.5)) / math.log(2 * len(asked) + 2)

    question = set(hashed_tokens(TEXTS[1]).tolist())
    total = sum(weight(token) * idf(token) for token in question)
    expected = [
        sum(
            weight(t) / total * idf(t) * document[t] / (document[t] + 0.9 * (0.6 + 0.4 * document.total() / mean))
            for t in question
        )
        for document in documents
    ]
    found = {hit.id: hit.score for hit in retriever.search(TEXTS[1])}
    assert [found.get(f"c#{i}", 0.0) for i in range(3)] == pytest.approx(expected, abs=1e-6)


def test_a_model_that_replaces_a_retriever_leaves_nothing_of_it(server, tiny_model):
    et.push_to_hub(a_retriever(tiny_model), "me/handbook", verify=False)
    et.push_to_hub(tiny_model, "me/handbook", verify=False)
    assert set(server.files[REPO]) == PLAIN


@pytest.mark.parametrize("name", ["word_weight", "counts"])
def test_a_retriever_that_arrives_with_other_words_is_noticed(server, tiny_model, monkeypatch, name):
    real = publishing_hub.write_learned

    def other(folder, saved):
        weights = WordWeights.learn([*QUESTIONS, *TEXTS])
        changed = {"word_weight": {"word_weight": 0.1}, "counts": {"words": LearnedWords(weights, 5.0)}}[name]
        real(folder, replace(saved, **changed))

    monkeypatch.setattr(publishing_hub, "write_learned", other)
    with pytest.raises(RuntimeError, match=r"The retriever uploaded to me/handbook .* scores differ by"):
        et.push_to_hub(a_retriever(tiny_model), "me/handbook")


def test_a_retriever_whose_model_was_trained_on_since_is_refused(tiny_model):
    retriever = a_retriever(tiny_model)
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="did not make the index"):
        et.push_to_hub(retriever, "me/handbook", dry_run=True)


def test_a_saved_retriever_explains_itself_and_is_published_under_its_new_name(tiny_model, tmp_path):
    retriever = a_retriever(tiny_model)
    retriever.save(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "Retriever.load('mine')" in text
    loaded = et.Retriever.load(tmp_path / "mine")
    loaded.with_word_weight(0.5).save(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert text.count("## How to search with it") == 1
    assert "similarity + 0.5 * words" in text
    card = et.push_to_hub(et.Retriever.load(tmp_path / "mine"), "me/handbook", dry_run=True).card
    assert card.count("## How to search with it") == 1
    assert "'mine'" not in card
