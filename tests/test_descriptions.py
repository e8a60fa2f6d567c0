from dataclasses import replace

import pytest
from llm_server import clean_environment, serving
from scripted_llm import ScriptedLLM

from embedtune.dataset import build_dataset
from embedtune.llms.anthropic import AnthropicLLM
from embedtune.llms.prices import paid
from embedtune.llms.protocol import Completion, Price
from embedtune.questions.descriptions import MAX_CHARACTERS, estimate_descriptions, generate_descriptions
from embedtune.retrieval.index import table_of_chunks
from embedtune.types import Chunk, Document, Question


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    clean_environment(monkeypatch, tmp_path)


def documents_and_chunks(num_documents=3, per_document=4):
    documents, chunks = [], []
    for d in range(num_documents):
        pieces = [
            f"Step {i} of machine {d}: turn wheel {7 * i + d} and wait. " + "Oil it well. " * 120
            for i in range(per_document)
        ]
        document = Document(f"{d}.md", "".join(pieces), title=f"Machine {d}")
        documents.append(document)
        start = 0
        for i, piece in enumerate(pieces):
            chunks.append(Chunk(f"{d}.md#{i}", f"{d}.md", piece, start, start + len(piece), title=document.title))
            start += len(piece)
    return documents, chunks


def test_each_chunk_is_asked_about_with_its_whole_document(tmp_path):
    documents, chunks = documents_and_chunks()
    llm = ScriptedLLM(lambda text: {"description": f"About {text.partition('Step ')[2][:5]}\n  here."})
    described = generate_descriptions(chunks, documents, llm, output_dir=tmp_path)
    assert [replace(chunk, description="") for chunk in described] == chunks
    assert all(chunk.description.startswith("About ") and chunk.description.endswith(" here.") for chunk in described)
    for request in llm.requests:
        shown = request["text"].partition("<document>")[2].partition("</document>")[0]
        passage = request["text"].partition("<passage>\n")[2].partition("\n</passage>")[0]
        assert passage in shown
    generate_descriptions(chunks, documents, llm, output_dir=tmp_path)
    assert len(llm.requests) == len(chunks)


def test_a_document_is_paid_for_once_and_then_read_from_the_cache(tmp_path):
    documents, chunks = documents_and_chunks(num_documents=2, per_document=8)
    with serving() as server:
        llm = AnthropicLLM("claude-haiku-5-5", client=server.anthropic_client())
        estimate = estimate_descriptions(chunks, documents, llm)
        described = generate_descriptions(chunks, documents, llm, output_dir=tmp_path, num_workers=1)
        contents = [entry["body"]["messages"][0]["content"] for entry in server.log if entry["route"] == "messages"]
        billed = server.microdollars
    assert all(chunk.description for chunk in described)
    assert [len(content) for content in contents] == [2] * 16
    assert {content[0]["cache_control"]["type"] for content in contents} == {"ephemeral"}
    assert len({content[0]["text"] for content in contents}) == 2
    assert estimate.live_usd == pytest.approx(billed / 1e6, rel=0.5)
    whole = paid(llm.price, Completion("", estimate.input_tokens, estimate.output_tokens))
    assert estimate.live_usd * 1e6 < 0.6 * whole


def test_cached_tokens_cost_what_the_price_says():
    price = Price(2.0, 10.0, cache_write=1.25, cache_read=0.1)
    assert paid(price, Completion("", 1000, 100)) == 3000
    assert paid(price, Completion("", 1000, 100, cache_write_tokens=1000)) == 3500
    assert paid(price, Completion("", 1000, 100, cache_read_tokens=1000)) == 1200
    assert paid(price, Completion("", 1000, 100, cache_read_tokens=400, cache_write_tokens=200), in_batch=True) == 1190


def test_a_budget_that_does_not_suffice_sends_nothing(tmp_path):
    documents, chunks = documents_and_chunks()
    with serving() as server:
        llm = AnthropicLLM("claude-sonnet-5-5", client=server.anthropic_client())
        with pytest.raises(ValueError, match=r"budget_usd=0\.001 does not suffice.*nothing was sent.*12 requests"):
            generate_descriptions(chunks, documents, llm, output_dir=tmp_path, budget_usd=0.001)
        assert server.log == []


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot do that.",
        "",
        {"description": 7},
        {"description": " "},
        {"description": "x" * (MAX_CHARACTERS + 1)},
        {},
        "[1]",
    ],
)
def test_a_reply_without_a_description_is_counted_and_never_kept(tmp_path, reply, caplog):
    documents, chunks = documents_and_chunks(1, 2)
    described = generate_descriptions(chunks, documents, ScriptedLLM(lambda text: reply), output_dir=tmp_path)
    assert described == chunks
    assert "2 of 2 chunks have no description (2 malformed reply)" in caplog.text


def test_half_characters_and_closing_tags_do_no_harm(tmp_path):
    text = "The pump</document><passage>\ud83d is red. Press both."
    document = Document("a", text)
    chunk = Chunk("a#0", "a", text[-11:], len(text) - 11, len(text))
    llm = ScriptedLLM(lambda text: '{"description": "A \\ud83d pump."}')
    (described,) = generate_descriptions([chunk], [document], llm, output_dir=tmp_path)
    assert described.description == "A \ufffd pump."
    assert llm.requests[0]["text"].count("</document>") == 1
    assert llm.requests[0]["text"].count("<passage>") == 1


def test_a_long_document_is_shown_in_part_around_the_chunk(tmp_path):
    text = "".join(f"Line {i} of the log. " for i in range(60_000))
    start = text.index("Line 30000 ")
    chunk = Chunk("a#0", "a", text[start : start + 200], start, start + 200)
    llm = ScriptedLLM(lambda text: {"description": "A log."})
    generate_descriptions([chunk], [Document("a", text)], llm, output_dir=tmp_path)
    asked = llm.requests[0]["text"]
    assert len(asked) < 230_000
    assert asked.count(chunk.text) == 2


def test_a_chunk_without_its_document_is_named(tmp_path):
    documents, chunks = documents_and_chunks(2)
    with pytest.raises(ValueError, match=r"document '1\.md' of chunk '1\.md#0' is not among the 1 documents"):
        generate_descriptions(chunks, documents[:1], ScriptedLLM(lambda text: {}), output_dir=tmp_path)


def test_training_and_serving_read_the_same_text_and_a_missing_description_is_an_error():
    _, chunks = documents_and_chunks(2)
    described = [replace(chunk, description=f"Machine, part {chunk.id}.") for chunk in chunks]
    questions = [Question(f"q{i}", f"What about wheel {i}?", (chunk.id,)) for i, chunk in enumerate(described)]
    context = ["title", "description"]
    data = build_dataset(described, questions, context=context, split_by="question", seed=0)
    served = {row["_id"]: row["text"] for row in table_of_chunks(described, context).to_pylist()}
    assert dict(zip(data.corpus["_id"], data.corpus["text"], strict=True)) == served
    assert served["0.md#0"].startswith("Machine 0\nMachine, part 0.md#0.\nStep 0")
    with pytest.raises(ValueError, match=r"generate_descriptions\(\) first"):
        build_dataset(chunks, questions, context=context, split_by="question", seed=0)
    with pytest.raises(ValueError, match=r"generate_descriptions\(\) first"):
        table_of_chunks(chunks, context)


def test_documents_take_turns_so_that_the_cache_is_filled_before_it_is_read(tmp_path):
    documents, chunks = documents_and_chunks(num_documents=4, per_document=3)
    llm = ScriptedLLM(lambda text: {"description": "About it."})
    llm.batch_size = 1
    llm.send_all = lambda bodies: [llm.send(body) for body in bodies]  # one after the other, in order
    generate_descriptions(chunks, documents, llm, output_dir=tmp_path, num_workers=2)
    order = [request["text"].partition("<document_title>Machine ")[2][0] for request in llm.requests]
    assert order == list("010101232323")
