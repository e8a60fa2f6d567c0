"""A dataset on disk: whole, and nothing outside its folder."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

import embedtune as et

CHUNKS = [et.Chunk(f"{i}#0", f"{i}", f"text number {i}", 0, 13) for i in range(4)]


def dataset(split="train", number=1):
    questions = [
        et.Question("q0", f"what one {number}?", ("0#0",), split="dev"),
        et.Question("q1", f"what two {number}?", ("1#0",), split=split),
    ]
    return et.build_dataset(CHUNKS, questions, split_by="given")


@pytest.mark.parametrize(
    "split", ["../../../victim", "/etc/passwd", "a/b", "..", "a b", "x: y\nlicense: evil", "nul\0", "a\\b"]
)
def test_a_split_that_is_no_name_of_a_file_is_refused(split):
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        dataset(split)


@pytest.mark.parametrize("split", ["test_seen", "test-hard", "v1.2", "prüfung", "folds"])
def test_other_names_of_splits_are_taken(tmp_path, split):
    dataset(split).save_to_disk(tmp_path / "data")
    assert et.RetrievalDataset.load_from_disk(tmp_path / "data").splits == ["dev", split]


def test_what_the_questions_cost_is_kept(tmp_path):
    data = replace(dataset(), cost_usd=1.25)
    data.save_to_disk(tmp_path / "data")
    assert et.RetrievalDataset.load_from_disk(tmp_path / "data").cost_usd == 1.25


def test_splits_outside_of_the_folder_are_not_read(tmp_path):
    dataset().save_to_disk(tmp_path / "data")
    outside = tmp_path / "private.parquet"
    outside.write_bytes((tmp_path / "data" / "qrels" / "train.parquet").read_bytes())
    path = tmp_path / "data" / "embedtune.json"
    for name in (str(outside)[: -len(".parquet")], "../../private"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": [name]}))
        with pytest.raises(ValueError, match=r"embedtune\.json is damaged .*cannot be the name of a file"):
            et.RetrievalDataset.load_from_disk(tmp_path / "data")


@pytest.mark.parametrize("settings", ["[]", "{}", '{"splits": [5], "split_by": "given", "context": []}', "{"])
def test_damaged_settings_are_named(tmp_path, settings):
    dataset().save_to_disk(tmp_path / "data")
    (tmp_path / "data" / "embedtune.json").write_text(settings)
    with pytest.raises(ValueError, match=r"embedtune\.json is damaged"):
        et.RetrievalDataset.load_from_disk(tmp_path / "data")


def test_a_reader_beside_a_writer_gets_one_dataset(tmp_path):
    both = [dataset(number=1), dataset(number=2)]
    both[0].save_to_disk(tmp_path / "data")
    writer = threading.Thread(target=lambda: [both[i % 2].save_to_disk(tmp_path / "data") for i in range(20)])
    writer.start()
    while writer.is_alive():
        texts = et.RetrievalDataset.load_from_disk(tmp_path / "data").query_texts
        assert len({text.split()[-1] for text in texts.values()}) == 1
    writer.join()
