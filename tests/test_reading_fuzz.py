from __future__ import annotations

import base64
import json
import random
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from embedtune.corpus.chunking import chunk_documents
from embedtune.corpus.documents import read_documents
from embedtune.corpus.junk import without_junk
from embedtune.corpus.tokens import token_counter
from embedtune.corpus.webpages import MAX_DEPTH, read_page
from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.result import Evaluation
from embedtune.improvement.rounds import Round
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.index import ChunkIndex
from embedtune.types import Document

WORD = st.text("abcdefghijklmnop", min_size=1, max_size=9)
TAGS = [
    "p",
    "div",
    "b",
    "i",
    "table",
    "tr",
    "td",
    "ul",
    "li",
    "h2",
    "sup",
    "a",
    "pre",
    "font id=1",
    "select",
    "option",
    "hr",
    "center",
]
MARKUP = st.lists(
    st.one_of(
        WORD, st.sampled_from([f"<{end}{tag}>" for tag in TAGS for end in ("", "/")] + ["<", "&", "<a href='", "<!"])
    )
)


def read_or_named(folder):
    try:
        return read_documents(folder), ""
    except ValueError as err:
        return [], str(err)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"per_query": ', b"[]"])
@pytest.mark.parametrize(
    "read",
    [
        Evaluation.load,
        lambda path: RetrievalDataset.from_llama_index(path, test_size=0.2),
        lambda path: Round.load(path.parent),
        lambda path: ChunkIndex.load(path.parent),
        lambda path: RetrievalDataset.load_from_disk(path.parent),
    ],
    ids=["evaluation", "llama_index", "round", "index", "dataset"],
)
def test_json_that_is_cut_nested_too_deeply_or_no_text_is_refused_with_its_name(tmp_path, read, content):
    for name in ("round.json", "index.json", "embedtune.json", "corpus.parquet"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        read(tmp_path / "round.json")


def test_an_evaluation_with_a_question_without_relevant_chunks_is_refused(tmp_path):
    """Its metrics would be NaN."""
    data = RetrievalDataset.from_pairs([(f"chunk {i}", [f"what is {i}?"]) for i in range(8)], test_size=0.5, dev_size=0)
    path = tmp_path / "result.json"
    TopKEvaluator(data, k=(1,)).evaluate(BM25()).save(path)
    content = json.loads(path.read_text())
    content["per_query"]["relevant"][0] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result\.json .* a question has no relevant chunks"):
        Evaluation.load(path)


@settings(deadline=None)
@given(MARKUP, st.sampled_from(["a.html", "a.md", "a.rst", "a.txt", "a.csv", "a.tsv", "a.jsonl", "a.ipynb"]))
def test_any_document_is_read_or_named(parts, name):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(" ".join(parts), encoding="utf-8")
        documents, problem = read_or_named(folder)
    assert documents or name in problem
    for chunk in chunk_documents(documents, max_tokens=20) if documents else []:
        (document,) = (document for document in documents if document.id == chunk.document_id)
        assert document.text[chunk.start : chunk.end] == chunk.text


@settings(deadline=None)
@given(
    st.lists(WORD, min_size=1),
    st.lists(st.sampled_from(["<div>", "</div>", "<b>", "</b>", "<i x=1>", "<p>", "<hr>", "<section>"])),
)
def test_no_word_of_a_page_is_lost_and_none_is_glued(words, tags):
    markup = "".join(f"{word} {tags[i % len(tags)] if tags else ''}" for i, word in enumerate(words))
    assert read_page(markup).text.split() == words


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.epub", "a.txt", "a.html"]))
def test_bytes_of_any_kind_are_read_or_named(data, name):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data)
        documents, problem = read_or_named(folder)
    assert documents or name in problem


@settings(deadline=None)
@given(st.text(max_size=400))
def test_what_people_write_is_no_junk(text):
    assert without_junk(text)[0] == text


@pytest.mark.parametrize(
    "text",
    [
        "ACGT" * 100,
        "a" * 500,
        "https://example.org/" + "a-rather-long-path/" * 30,
        "/usr/lib/python/site-packages/" * 20,
        "2019 1200 3400 5600 7800 9900\n" * 20,
        "Donaudampfschiff" * 40,
        "这台泵必须同时按下两个按钮才能重新启动。" * 60,
        "เครื่องสูบน้ำนี้ต้องกดปุ่มทั้งสองพร้อมกัน" * 60,
        "sha256: " + "ab12" * 16,
        "| a | b | c |\n" * 50,
        "Press both buttons, then wait; (see [1]) " * 30,
    ],
)
def test_long_texts_without_spaces_and_tables_of_numbers_are_kept(text):
    assert without_junk(text)[0] == text


def test_what_only_a_machine_reads_is_taken_out():
    rng = random.Random(0)
    data = rng.randbytes(600)
    encoded = base64.b64encode(data).decode()
    dump = "".join(f"{i:08x}  {data[i : i + 16].hex(' ')}  |................|\n" for i in range(0, 160, 16))
    lines = "\n".join(encoded[i : i + 64] for i in range(0, len(encoded), 64))
    for junk in (
        f"![a](data:image/png;base64,{encoded})", encoded, data.hex(), dump, lines, "0x1f, 0x8b, " * 20,
        "function a(b,c){return b?c:d[e].f};" * 30,
    ):  # fmt: skip
        kept, counts = without_junk(f"Above.\n\n{junk}\n\nBelow.")
        assert re.sub(r"!\[a\]\(\)", "", kept).split() == ["Above.", "Below."], junk[:40]
        assert sum(counts.values()) == 1


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "pump": 1, "x": 2, "##x": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_long_unknown_word_counts_as_many_tokens():
    assert token_counter(wordpiece()).token_starts("pump " + "z" * 23 + " pump").tolist() == [0, 5, 10, 15, 20, 25, 29]
    assert token_counter(wordpiece()).token_starts("zzz pump").tolist() == [0, 4]


def test_chunks_that_the_model_cannot_read_are_counted_and_named(caplog):
    documents = [Document("thai\n.txt", "เครื่องสูบน้ำ" * 100), Document("a.txt", "pump pump")]
    chunks = chunk_documents(documents, max_tokens=50, tokenizer=wordpiece())
    assert max(len(chunk.text) for chunk in chunks) <= 50 * 5
    assert f"{len(chunks) - 1} of {len(chunks)} chunks are mostly unknown to the tokenizer" in caplog.text
    assert r"'thai\n.txt'" in caplog.text
    assert "'a.txt'" not in caplog.text


def test_tokens_are_counted_without_any_tokenizer_by_default():
    assert token_counter(None).token_starts("Restarting 12345 東京, e.g.").tolist() == [
        0,
        6,
        11,
        14,
        17,
        18,
        19,
        21,
        22,
        23,
        24,
    ]
    sample = "Press both buttons of the cold store at once, and hold them until the lamp turns green."
    assert 17 <= len(token_counter().token_starts(sample)) <= 22


# HTML


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<div>One ends.<hr>Two</div>", "One ends.\n\nTwo"),
        ("<center>Pump</center>Press", "Pump\n\nPress"),
        ("<fieldset><legend>Size</legend>Choose</fieldset>", "Size\n\nChoose"),
        ("<select><option>Red<option>Green</select>", "Red\n\nGreen"),
        ("<button>Save</button><button>Cancel</button>", "Save\n\nCancel"),
        ("<dialog>Sure?</dialog>Next", "Sure?\n\nNext"),
        ("<p>10<sup>6</sup> N, 10<sup>-3</sup> g, pump<sup><a href=#f>1</a></sup>", "10^6 N, 10^-3 g, pump^1"),
        ("<p>1<sup>st</sup> H<sub>2</sub>O x<sub>i</sub> y<sup></sup> z", "1st H2O x_i y z"),
        ("<pre>```\na\n~~~\n</pre><h2>After</h2>", "````\n```\na\n~~~\n````\n\n## After"),
        (
            "<a href='#m'>Skip to content</a><header>Shop</header><main id=m><p>Text</main><footer>Cookies</footer>",
            "Text",
        ),
        ("<main></main><p>Text", "Text"),
        ("<div class='cookie-banner'>We use them</div><div class=cookie-recipe>Bake", "Bake"),
        ("<p>Text</p><footer>We use <a>Cookies</a></footer><footer>Kitchen 4417</footer>", "Text\n\nKitchen 4417"),
        ("<div style='display: none'>x</div><p>y", "y"),
        ("<p>Use the <a href='#x'>skip</a> key", "Use the skip key"),
    ],
)
def test_html_reads_as_it_looks(markup, text):
    assert read_page(markup).text == text


@pytest.mark.parametrize(
    "markup",
    ["<svg><title>Icon</title></svg><title>Pump</title>x", "<title>Pump</title><svg><title>Icon</title></svg>"],
)
def test_the_name_of_an_icon_is_not_the_title(markup):
    assert read_page(markup).title == "Pump"


def test_elements_beyond_the_depth_keep_their_text_apart():
    words = [f"w{i}" for i in range(3 * MAX_DEPTH)]
    assert read_page("".join(f"<div>{word}" for word in words)).text.split() == words
    assert read_page("<b><i>" * 400 + "".join(f"<p>{word}</p>" for word in words)).text.split() == words


@pytest.mark.parametrize(
    "piece",
    [
        "<a href='",
        "<a ",
        "<div>",
        "<li><ul>a",
        "<b id=1><p>",
        "<!--",
        "<svg>",
        "</p><div>",
        "<table>",
        "data:a/b,",
        "0a0b ",
        "a1B",
        "0x1f,",
    ],
)
def test_time_grows_with_the_length_of_malformed_text(piece):
    def seconds(length):
        text = piece * (length // len(piece))
        start = time.process_time()
        read_page(text)
        without_junk(text)
        return time.process_time() - start

    seconds(1000)
    small = min(seconds(40_000) for _ in range(3))
    assert seconds(320_000) < 25 * small + 0.3  # the square would be 64


def test_a_chunk_of_a_document_with_pages_knows_its_page():
    document = Document("a.pdf", "One two.\n\nThree four.\n\nFive.", page_starts=(0, 10, 23))
    chunks = chunk_documents([document], max_tokens=3)
    assert [(chunk.text, chunk.page) for chunk in chunks] == [("One two.", 1), ("Three four.", 2), ("Five.", 3)]
    assert chunk_documents([Document("a", "One.")])[0].page == 0
    assert np.array_equal([chunk.start for chunk in chunks], [0, 10, 23])


@pytest.mark.parametrize("max_tokens", [1, 3, 5, 30])
@pytest.mark.parametrize("strategy", ["fixed", "structure"])
def test_a_word_that_is_unknown_as_a_whole_but_known_in_pieces_is_cut_to_fit(max_tokens, strategy):
    counter = token_counter(wordpiece())
    document = Document("a", "pump " + "x" * 250 + " pump")
    chunks = chunk_documents([document], max_tokens=max_tokens, tokenizer=counter, strategy=strategy)
    assert max(len(counter.token_starts(chunk.text)) for chunk in chunks) <= max_tokens
    assert "".join(chunk.text for chunk in chunks).replace(" ", "") == document.text.replace(" ", "")
