"""RetrievalDataset: tables, views and storage."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from datasets import Dataset

from embedtune.dataset import RetrievalDataset, build_dataset
from embedtune.dataset.columns import VIEW_ROLES, role_of
from embedtune.types import Chunk, Question

NOUNS = ["pump", "valve", "sensor", "door", "filter", "battery", "cable", "crane", "lamp", "clock"]


def make_chunks(num_documents=10, per_document=3):
    chunks = []
    for d in range(num_documents):
        start = 0
        for i in range(per_document):
            text = f"The {NOUNS[d % 10]} number {d} part {i} is kept in room {d * 7 + i} beside shelf {i * 13 + d}."
            chunks.append(Chunk(f"d{d}#{i}", f"d{d}", text, start, start + len(text), keywords=(NOUNS[d % 10],)))
            start += len(text) + 1
    return chunks


def make_questions(chunks, per_chunk=4):
    return [
        Question(f"{chunk.id}/{i}", f"Question {i}: where is what {chunk.id} speaks of?", (chunk.id,))
        for chunk in chunks
        for i in range(per_chunk)
    ]


@pytest.fixture
def chunks():
    return make_chunks()


@pytest.fixture
def questions(chunks):
    return make_questions(chunks)


@pytest.fixture
def data(chunks, questions):
    return build_dataset(chunks, questions, test_size=0.3, dev_size=0.2, test_seen_size=0.2, seed=1)


def test_the_corpus_holds_every_chunk_also_those_without_a_question(chunks, questions):
    data = build_dataset(chunks, questions[4:], seed=1)
    assert data.corpus["_id"] == [chunk.id for chunk in chunks]


def test_every_question_is_judged_in_exactly_one_split(data, questions):
    judged = [question for split in data.splits for question in data.relevant(split)]
    assert sorted(judged) == sorted(question.id for question in questions)


def test_the_queries_say_who_wrote_them(chunks, questions):
    written = Question("q", "How warm?", ("d0#0",), style="keyword", answer="4 degrees", model="m", prompt_version="p1")
    row = build_dataset(chunks, [*questions, written], test_size=0, dev_size=0).queries[-1]
    assert row == {
        "_id": "q",
        "text": "How warm?",
        "style": "keyword",
        "answer": "4 degrees",
        "model": "m",
        "prompt_version": "p1",
    }


def test_splits_come_in_the_usual_order(data):
    assert data.splits == ["train", "dev", "test", "test_seen"]


def test_the_context_is_put_before_the_text_that_is_embedded(chunks, questions):
    data = build_dataset(chunks, questions, context=["keywords"])
    assert data.corpus[0]["text"] == f"#pump\n{chunks[0].text}"
    assert data.context == ("keywords",)


def test_no_column_is_named_title_because_beir_readers_would_embed_it(data):
    assert "title" not in data.corpus.column_names


# Views


def test_pairs_have_a_question_and_a_chunk_that_answers_it(data):
    pairs = data.pairs("train")
    assert pairs.column_names == ["anchor", "positive"]
    relevant = data.relevant("train")
    expected = [(data.query_texts[q], data.corpus_texts[c]) for q, cs in relevant.items() for c in cs]
    assert list(zip(pairs["anchor"], pairs["positive"], strict=True)) == expected


def test_a_question_with_two_right_chunks_gives_two_pairs_that_know_of_each_other(chunks):
    both = Question("both", "Where are the first two parts?", ("d0#0", "d0#1"))
    other = Question("other", "Where is the last part?", ("d5#2",), split="train")
    data = build_dataset(chunks, [Question(both.id, both.text, both.chunk_ids, split="train"), other], split_by="given")
    pairs = data.pairs("train", with_ids=True)
    assert pairs["label"][0] == pairs["label"][1][::-1]
    assert len(set(pairs["label"][0])) == 2
    assert set(pairs["label"][2]) & set(pairs["label"][0]) == set()


def test_labels_have_one_width_so_that_they_make_a_tensor(chunks, questions):
    extra = Question("extra", "Where are these?", ("d0#0", "d0#1", "d0#2"))
    data = build_dataset(chunks, [*questions, extra], test_size=0, dev_size=0)
    assert {len(label) for label in data.pairs("train", with_ids=True)["label"]} == {3}


def test_near_duplicate_chunks_have_one_id_and_overlapping_neighbours_are_known_answers():
    text = "one two three four five six seven eight nine ten"
    chunks = [
        Chunk("a#0", "a", text, 0, len(text)),
        Chunk("b#0", "b", text + " eleven", 0, len(text) + 7),
        Chunk("c#0", "c", "alpha beta gamma delta", 0, 22),
        Chunk("c#1", "c", "delta epsilon zeta eta", 17, 39),
    ]
    questions = [Question(f"{c.id}/0", f"What of {c.id}?", (c.id,), split="train") for c in chunks]
    labels = build_dataset(chunks, questions, split_by="given").pairs("train", with_ids=True)["label"]
    assert labels[0] == labels[1]
    assert labels[2] == labels[3][::-1]
    assert set(labels[0]).isdisjoint(labels[2])


def test_questions_of_equal_text_share_their_answers(chunks):
    questions = [
        Question("q0", "Where is it?", ("d0#0",), split="train"),
        Question("q1", "where is  IT?", ("d1#0",), split="train"),
    ]
    labels = build_dataset(chunks, questions, split_by="given").pairs("train", with_ids=True)["label"]
    assert set(labels[0]) == set(labels[1])


def test_triplets_have_the_roles_of_the_article_and_negatives_of_the_same_split_alone(data):
    triplets = data.triplets("train", num_negatives=3, seed=0)
    assert triplets.column_names == ["chunk", "question", "other_question"]
    assert len(triplets) == 3 * len(data.relevant("train"))
    chunk_of = {data.query_texts[q]: {data.corpus_texts[c] for c in cs} for q, cs in data.relevant("train").items()}
    for row in triplets:
        assert row["chunk"] in chunk_of[row["question"]]
        assert row["other_question"] in chunk_of, "a question of another split was drawn"
        assert row["chunk"] not in chunk_of[row["other_question"]]


def test_a_negative_is_never_drawn_twice_for_one_question(data):
    drawn = Counter((row["question"], row["other_question"]) for row in data.triplets("train", num_negatives=5))
    assert max(drawn.values()) == 1


def test_negatives_are_drawn_by_the_seed(data):
    drawn = [data.triplets("train", seed=seed)["other_question"][:] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_fewer_negatives_are_drawn_where_there_are_no_more(chunks):
    questions = make_questions(chunks[:2], per_chunk=1)
    data = build_dataset(chunks, questions, test_size=0, dev_size=0)
    assert len(data.triplets("train", num_negatives=5)) == 2


def test_negatives_are_refused_where_one_chunk_answers_everything(chunks):
    data = build_dataset(chunks, make_questions(chunks[:1]), test_size=0, dev_size=0)
    with pytest.raises(ValueError, match=r"Chunk 'd0#0' answers every question of split 'train'"):
        data.triplets("train")


def test_near_duplicates_of_the_anchor_are_not_its_negatives():
    text = "one two three four five six seven eight nine ten"
    chunks = [
        Chunk("a#0", "a", text, 0, len(text)),
        Chunk("b#0", "b", text + " eleven", 0, len(text) + 7),
        Chunk("c#0", "c", "alpha beta gamma delta", 0, 22),
    ]
    questions = [Question(c.id, f"What of {c.id}?", (c.id,), split="train") for c in chunks]
    triplets = build_dataset(chunks, questions, split_by="given").triplets("train", num_negatives=5)
    assert {(row["question"], row["other_question"]) for row in triplets} == {
        ("What of a#0?", "What of c#0?"),
        ("What of b#0?", "What of c#0?"),
        ("What of c#0?", "What of a#0?"),
        ("What of c#0?", "What of b#0?"),
    }


def test_labelled_pairs_say_which_questions_a_chunk_answers(data):
    pairs = data.labelled_pairs("train", num_negatives=2)
    assert pairs.column_names == ["chunk", "question", "label"]
    answered = {(data.corpus_texts[c], data.query_texts[q]) for q, cs in data.relevant("train").items() for c in cs}
    rows = list(zip(pairs["chunk"], pairs["question"], pairs["label"], strict=True))
    assert {(chunk, question) for chunk, question, label in rows if label == 1} == answered
    assert all((chunk, question) not in answered for chunk, question, label in rows if label == -1)
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("view", VIEW_ROLES)
def test_the_names_of_a_views_columns_say_what_they_hold(data, view):
    table = getattr(data, view)("train")
    columns = [column for column in table.column_names if column != "label"]
    assert tuple(map(role_of, columns)) == VIEW_ROLES[view]
    for column in columns:
        known = data.query_texts if role_of(column) == "query" else data.corpus_texts
        assert set(table[column]) <= set(known.values())


def test_an_anchor_is_a_question_and_an_unknown_name_says_nothing():
    assert role_of("anchor") == "query"
    assert role_of("negative_12") == "document"
    assert role_of("sentence1") is role_of("anchors") is role_of("negative_x") is None


def test_an_unknown_split_is_refused_with_those_that_exist(data):
    with pytest.raises(
        ValueError, match=r"no split 'validation'; this dataset has \['train', 'dev', 'test', 'test_seen'\]"
    ):
        data.pairs("validation")


def test_zero_negatives_are_refused(data):
    with pytest.raises(ValueError, match="num_negatives=0"):
        data.triplets("train", num_negatives=0)


# Bad input


def test_a_corpus_of_one_chunk_is_refused(chunks):
    with pytest.raises(ValueError, match="needs at least 2"):
        build_dataset(chunks[:1], make_questions(chunks[:1]))


def test_no_questions_are_refused(chunks):
    with pytest.raises(ValueError, match="no questions"):
        build_dataset(chunks, [])


def test_a_question_about_an_unknown_chunk_is_refused_by_name(chunks, questions):
    with pytest.raises(ValueError, match=r"'lost' names chunk 'gone#0'"):
        build_dataset(chunks, [*questions, Question("lost", "What?", ("gone#0",))])


def test_a_question_without_a_chunk_is_refused(chunks, questions):
    with pytest.raises(ValueError, match="'lost' names no relevant chunk"):
        build_dataset(chunks, [*questions, Question("lost", "What?", ())])


def test_ids_that_stand_twice_are_refused(chunks, questions):
    with pytest.raises(ValueError, match="chunk id 'd0#0' is not unique"):
        build_dataset([*chunks, chunks[0]], questions)
    with pytest.raises(ValueError, match="question id 'd0#0/0' is not unique"):
        build_dataset(chunks, [*questions, questions[0]])


def test_empty_texts_are_refused(chunks, questions):
    with pytest.raises(ValueError, match="text of chunk 'blank' is empty"):
        build_dataset([*chunks, Chunk("blank", "d99", " \n", 0, 2)], questions)
    with pytest.raises(ValueError, match="text of question 'blank' is empty"):
        build_dataset(chunks, [*questions, Question("blank", "  ", ("d0#0",))])


def test_text_that_no_file_can_hold_is_refused(chunks, questions):
    with pytest.raises(ValueError, match=r"question 'half' has half a character, U\+D83D, at offset 2"):
        build_dataset(chunks, [*questions, Question("half", "5 \ud83d?", ("d0#0",))])


def test_offsets_that_are_made_up_are_refused(questions):
    """All chunks at offset 0 would count as overlapping one another, and none would be a negative."""
    made_up = [Chunk("a#0", "a", "Press both.", 0, 11), Chunk("a#1", "a", "Turn it.", 0, 8)]
    with pytest.raises(ValueError, match=r"'a#0' and 'a#1' overlap by their offsets in document 'a'"):
        build_dataset(made_up, questions)
    with pytest.raises(ValueError, match=r"'b#0' has 8 characters, but its offsets 0 to 80 say 80"):
        build_dataset([Chunk("b#0", "b", "Turn it.", 0, 80), *made_up], questions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_size": 1.0}, r"test_size=1\.0 is not a share"),
        ({"dev_size": -0.1}, r"dev_size=-0\.1 is not a share"),
        ({"test_size": 0.6, "dev_size": 0.4}, "leave nothing to train on"),
        ({"split_by": "chunk"}, "split_by='chunk' is unknown. Choose one of"),
        ({"context": "title"}, "context='title' must be a list with"),
        ({"context": ["author"]}, r"context=\['author'\] must be a list with"),
        ({"split_by": "given"}, "needs a split for every question, and 120 have none"),
    ],
)
def test_options_that_make_no_sense_are_refused(chunks, questions, options, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(chunks, questions, **options)


def test_splits_that_questions_carry_are_not_ignored_in_silence(chunks):
    with pytest.raises(ValueError, match="split_by='given'"):
        build_dataset(chunks, [Question("q", "What?", ("d0#0",), split="test")])


def test_judgements_of_unknown_ids_are_refused(data):
    with pytest.raises(ValueError, match=r"corpus-id 'd\d#0', which is not in corpus"):
        RetrievalDataset(data.corpus.select([1, 2]), data.queries, data.qrels)
    with pytest.raises(ValueError, match=r"lacks \['_id'\]"):
        RetrievalDataset(data.corpus.remove_columns("_id"), data.queries, data.qrels)


# Storage


def same(first, second):
    assert first.splits == second.splits
    assert (first.split_by, first.context) == (second.split_by, second.context)
    assert first.corpus.to_list() == second.corpus.to_list()
    assert first.corpus.features == second.corpus.features
    assert first.queries.to_list() == second.queries.to_list()
    for split in first.splits:
        assert first.qrels[split].to_list() == second.qrels[split].to_list()


def test_what_is_saved_loads_again(data, tmp_path):
    data.save_to_disk(tmp_path / "data")
    same(RetrievalDataset.load_from_disk(tmp_path / "data"), data)


def test_the_saved_folder_is_a_hub_dataset_in_beir_layout(data, tmp_path):
    from datasets import load_dataset

    data.save_to_disk(tmp_path / "data")
    cache = str(tmp_path / "cache")
    corpus = load_dataset(str(tmp_path / "data"), "corpus", split="corpus", cache_dir=cache)
    judgements = load_dataset(str(tmp_path / "data"), split="test", cache_dir=cache)
    assert corpus["_id"] == data.corpus["_id"]
    assert judgements.column_names == ["query-id", "corpus-id", "score", "chunk_hash"]
    assert len(judgements) == len(data.qrels["test"])


def test_saving_replaces_an_older_dataset(data, chunks, questions, tmp_path):
    build_dataset(chunks, questions[:40], dev_size=0).save_to_disk(tmp_path / "data")
    data.save_to_disk(tmp_path / "data")
    same(RetrievalDataset.load_from_disk(tmp_path / "data"), data)
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "something was left behind"


def test_the_old_dataset_stays_when_saving_fails(data, tmp_path, monkeypatch):
    data.save_to_disk(tmp_path / "data")
    monkeypatch.setattr("embedtune.dataset.storage.dataset_card", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.save_to_disk(tmp_path / "data")
    same(RetrievalDataset.load_from_disk(tmp_path / "data"), data)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_saving_over_a_folder_that_is_something_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(FileExistsError, match="is not a saved dataset"):
        data.save_to_disk(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_loading_from_a_folder_without_a_dataset_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus\.parquet"):
        RetrievalDataset.load_from_disk(tmp_path)


# Pairs that exist already


def test_pairs_of_equal_chunk_text_are_one_chunk_with_several_questions():
    pairs = [("Press both.", "How to restart?"), ("Turn it.", "How to lock?"), ("Press both.", "What restarts it?")]
    data = RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
    assert list(data.corpus["text"]) == ["Press both.", "Turn it."]
    assert sorted(len(chunks) for chunks in data.relevant("train").values()) == [1, 1, 1]


def test_a_list_of_questions_per_chunk_and_a_dataset_of_columns_give_the_same():
    lists = [("Press both.", ["How to restart?", "What restarts it?"]), ("Turn it.", ["How to lock?"])]
    table = Dataset.from_dict({"passage": [c for c, _ in lists], "asked": [q for _, q in lists]})
    first = RetrievalDataset.from_pairs(lists, test_size=0, dev_size=0)
    second = RetrievalDataset.from_pairs(
        table, chunk_column="passage", question_column="asked", test_size=0, dev_size=0
    )
    same(first, second)


def test_adding_a_pair_renames_no_chunk():
    pairs = [("Press both.", "How to restart?"), ("Turn it.", "How to lock?")]
    before = RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
    after = RetrievalDataset.from_pairs([("Lift it.", "How to open?"), *pairs], test_size=0, dev_size=0)
    assert set(before.corpus["_id"]) < set(after.corpus["_id"])


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("Press both.", 3), ("b", "c")], TypeError, r"Row 0, column 'question': 3 is a int"),
        ([("a", "b"), (None, "How?")], TypeError, r"Row 1, column 'chunk': None is a NoneType"),
        ([("a", "b"), ("c", " ")], ValueError, r"Row 1, column 'question': the text is empty"),
        (["just text"], ValueError, "Row 0 is no"),
    ],
)
def test_pairs_that_are_none_are_refused_with_their_row(pairs, error, message):
    with pytest.raises(error, match=message):
        RetrievalDataset.from_pairs(pairs)


def test_a_dataset_without_the_columns_is_refused():
    with pytest.raises(ValueError, match=r"has the columns \['q'\], not 'chunk' and 'question'"):
        RetrievalDataset.from_pairs(Dataset.from_dict({"q": ["a"]}))


def test_a_llama_index_dataset_is_imported(tmp_path):
    content = {
        "queries": {"q1": "How to restart?", "q2": "How to lock?"},
        "corpus": {"n1": "Press both.", "n2": "Turn it.", "n3": "Nothing asks of me."},
        "relevant_docs": {"q1": ["n1"], "q2": ["n2", "n1"]},
        "mode": "text",
    }
    path = tmp_path / "qa_finetune_dataset.json"
    path.write_text(json.dumps(content))
    data = RetrievalDataset.from_llama_index(path, test_size=0, dev_size=0)
    assert data.relevant("train") == content["relevant_docs"]
    assert data.corpus_texts == content["corpus"]


@pytest.mark.parametrize("content", ["[]", '{"queries": {}, "corpus": {}}', "no json"])
def test_a_file_that_is_no_llama_index_dataset_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json"):
        RetrievalDataset.from_llama_index(path)


# Documents that are read again


def read_again(chunks, *, notice):
    """The chunks of each document, moved down by a chunk with a notice at its top."""
    size = len(notice)
    found = []
    for document in dict.fromkeys(chunk.document_id for chunk in chunks):
        own = [chunk for chunk in chunks if chunk.document_id == document]
        found.append(Chunk(f"{document}#0", document, f"{notice} {document}", 0, size + 1 + len(document)))
        found += [
            replace(chunk, id=f"{document}#{i}", start=chunk.start + 1000, end=chunk.end + 1000)
            for i, chunk in enumerate(own, start=1)
        ]
    return found


@pytest.mark.parametrize("context", [(), ("title", "headings")])
def test_labels_of_a_dataset_follow_their_texts_when_documents_are_read_again(chunks, questions, context, caplog):
    data = build_dataset(chunks, questions, context=context)
    moved = read_again(chunks, notice="This edition replaces all earlier ones.")
    again = build_dataset(moved, data.to_questions(), split_by="given", context=context)
    assert again.splits == data.splits
    for split in data.splits:
        before, after = data.relevant(split), again.relevant(split)
        assert before.keys() == after.keys()
        for query in before:
            texts = [[one.corpus_texts[chunk] for chunk in of[query]] for one, of in ((data, before), (again, after))]
            assert texts[0] == texts[1]
    assert f"{len(questions)} of {len(questions)} questions were moved" in caplog.text
    assert Counter(again.queries["style"][:]) == Counter(data.queries["style"][:])


def test_questions_whose_text_is_gone_are_set_aside_and_counted(chunks, questions, caplog):
    asked = build_dataset(chunks, questions).to_questions()
    edited = [replace(chunks[0], text=chunks[0].text.upper()), *chunks[1:]]
    data = build_dataset(edited, asked, split_by="given")
    lost = [question for question in asked if chunks[0].id in question.chunk_ids]
    assert 0 < len(lost) == len(asked) - len(data.queries)
    assert f"{len(lost)} were set aside" in caplog.text


def test_a_corpus_that_changed_under_its_labels_is_refused(data):
    rows = [row | {"text": row["text"] + " and more"} for row in data.corpus.to_list()]
    with pytest.raises(ValueError, match=r"for a text that it no longer has .* data.to_questions\(\)"):
        replace(data, corpus=Dataset.from_list(rows, data.corpus.features))


def test_hashes_that_do_not_fit_the_chunks_are_refused(chunks, questions):
    odd = replace(questions[0], chunk_hashes=("a", "b", "c"))
    with pytest.raises(ValueError, match="has 3 chunk_hashes for 1 chunk_ids"):
        build_dataset(chunks, [odd, *questions[1:]])


# The mix of styles


def test_a_dataset_shows_the_mix_of_its_questions(chunks, questions):
    styled = [replace(one, style="keyword" if i % 3 else "vague") for i, one in enumerate(questions)]
    data = build_dataset(chunks, styled)
    num_vague = len(styled[::3])
    assert data.styles_of(data.query_texts) == {"keyword": len(styled) - num_vague, "vague": num_vague}
    assert repr(data).endswith(f"\n  styles: {len(styled) - num_vague} keyword, {num_vague} vague")
    assert f"{num_vague} vague</p>" in data._repr_html_()
    plain = build_dataset(chunks, [replace(one, style="") for one in questions])
    assert plain.styles_of(plain.query_texts) == {}
    assert "style" not in repr(plain)


# Records and tables that are wrong


BEIR = ({"_id": ["a", "b"], "text": ["press", "turn"]}, {"_id": ["1"], "text": ["press"]}, {"query-id": ["1"], "corpus-id": ["a"], "score": [1]})  # fmt: skip


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"_id": ["a", "a"]}, "corpus has the _id 'a' more than once"),
        (1, {"_id": ["1", "1"], "text": ["press", "turn"]}, "queries has the _id '1' more than once"),
        (0, {"text": ["press", None]}, "corpus has no text in row 1 .None, _id 'b'"),
        (0, {"text": ["press", ""]}, "text of corpus is empty in row 1 ._id 'b', 1 such rows"),
        (0, {"text": ["press", " \n"], "title": ["Pump", ""]}, "text of corpus is empty in row 1 ._id 'b'"),
        (0, {"title": [3, 4]}, "corpus has the title 3 in row 0"),
        (1, {"text": [" "]}, "text of queries is empty in row 0 ._id '1'"),
        (2, {"score": [None]}, r"qrels\['test'\] has the score None in row 0"),
        (2, {"score": ["1"]}, r"qrels\['test'\] has the score '1' in row 0"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_its_row(place, change, message):
    tables = [Dataset.from_dict(table | (change if i == place else {})) for i, table in enumerate(BEIR)]
    with pytest.raises(ValueError, match=message):
        RetrievalDataset(tables[0], tables[1], {"test": tables[2]})


def beir(**corpus):
    tables = [Dataset.from_dict(table | (corpus if i == 0 else {})) for i, table in enumerate(BEIR)]
    return RetrievalDataset(tables[0], tables[1], {"test": tables[2]})


def test_titles_of_beir_are_embedded_before_the_texts_as_context_and_only_once(tmp_path):
    data = beir(title=["Pump", ""])
    assert data.corpus_texts == {"a": "Pump\npress", "b": "turn"}
    assert data.context == ("title",)
    assert data.corpus["document_title"][:] == ["Pump", ""]
    assert "title" not in data.corpus.column_names  # a BEIR reader would put it before the text once more
    assert data.corpus_texts["a"] == Chunk("a", "a", "press", 0, 5, title="Pump").text_with(data.context)
    data.save_to_disk(tmp_path / "data")
    again = RetrievalDataset.load_from_disk(tmp_path / "data")
    assert again.corpus_texts == data.corpus_texts
    assert again.context == ("title",)


def test_a_chunk_of_beir_may_have_a_title_alone_or_none():
    assert beir(title=["Pump", "Door"], text=["press", ""]).corpus_texts == {"a": "Pump\npress", "b": "Door"}
    assert beir(title=[None, None]).corpus_texts == {"a": "press", "b": "turn"}


@pytest.mark.parametrize(("scores", "warned"), [([3, 1], True), ([1, 1], False), ([2, 0], False)])
def test_grades_above_zero_are_relevant_and_it_is_said_that_they_count_alike(scores, warned, caplog):
    qrels = Dataset.from_dict({"query-id": ["1", "1"], "corpus-id": ["b", "a"], "score": scores})
    data = RetrievalDataset(Dataset.from_dict(BEIR[0]), Dataset.from_dict(BEIR[1]), {"test": qrels})
    assert data.relevant("test") == {"1": ["b", "a"][: sum(score > 0 for score in scores)]}
    assert ("grades of relevance from 1 to 3" in caplog.text) is warned


def test_records_without_a_text_are_refused_by_name():
    good, question = Chunk("a", "a", "x", 0, 1), Question("q", "what", ("a",))
    with pytest.raises(TypeError, match=r"The text of chunks\[1\] \('b'\) is None"):
        build_dataset([good, Chunk("b", "b", None, 0, 1)], [question])
    with pytest.raises(TypeError, match=r"The text of questions\[0\] \('q'\) is None"):
        build_dataset([good, Chunk("b", "b", "y", 0, 1)], [replace(question, text=None)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": {"n1": None}}, "'n1' in 'corpus' is None, and a text is expected"),
        ({"corpus": ["a", "b"]}, "'corpus' is a list"),
        ({"queries": {"q1": 1}}, "'q1' in 'queries' is 1, and a text is expected"),
        ({"relevant_docs": {"q1": None}}, "'q1' in 'relevant_docs' is None, and a list of ids is expected"),
        ({"relevant_docs": {"q1": "n1"}}, "'q1' in 'relevant_docs' is 'n1', and a list of ids is expected"),
    ],
)
def test_an_entry_that_llama_index_would_not_write_is_refused_by_name(tmp_path, change, message):
    content = {"corpus": {"n1": "x", "n2": "y"}, "queries": {"q1": "a?"}, "relevant_docs": {"q1": ["n1"]}} | change
    (tmp_path / "qa.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        RetrievalDataset.from_llama_index(tmp_path / "qa.json")
