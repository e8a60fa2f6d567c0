"""A corpus in shards: each is encoded once, by one process, by the right model, and what is read is what one process encodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_ddp import launch

import embedtune as et
from embedtune.retrieval import shards
from embedtune.retrieval.shards import encode_shards, read_shards, shards_to_engine, write_corpus

THINGS = ["pump", "valve", "door", "lamp", "clock", "engine", "roof", "garden", "crane", "filter", "cable"]
QUESTIONS = ["how to open the valve", "check the garden lamp", "crane", "zebra"]
CHUNKS = [
    et.Chunk(f"{thing}.md#{part}", f"{thing}.md", f"{verb} the {thing} and wait for {other}", 0, 9, headings=(thing,))
    for thing, other in zip(THINGS, reversed(THINGS), strict=True)
    for part, verb in enumerate(("open", "replace"))
]
ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]


@pytest.fixture
def corpus(tmp_path):
    write_corpus(reversed(CHUNKS), tmp_path / "corpus", chunks_per_shard=5)
    return tmp_path / "corpus"


def process(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def edit(path, change):
    """Replace a shard by one with other columns, and with what it says about itself."""
    table = parquet.read_table(path)
    parquet.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def test_what_is_read_ranks_as_a_retriever_made_of_the_chunks(corpus, tiny_model, tmp_path):
    assert len(encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")) == 5
    index, exact = read_shards(tmp_path / "vectors"), et.Retriever.from_chunks(tiny_model, CHUNKS)
    assert index.chunks.equals(exact.index.chunks)
    assert index.corpus_fingerprint == exact.index.corpus_fingerprint
    np.testing.assert_allclose(index.vectors, exact.index.vectors, atol=1e-6)
    for question in QUESTIONS:
        found, wanted = et.Retriever(tiny_model, index).search(question), exact.search(question)
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
        assert [hit.headings for hit in found] == [hit.headings for hit in wanted]


def test_every_number_of_processes_writes_the_same_bytes_and_no_shard_twice(corpus, tiny_model, tmp_path, monkeypatch):
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "one")
    for size in (2, 3, 7):
        new = []
        for rank in reversed(range(size)):
            process(monkeypatch, rank, size)
            new += encode_shards(tiny_model, corpus, output_dir=tmp_path / f"{size}")
        assert sorted(path.name for path in new) == sorted(path.name for path in corpus.iterdir())
        assert content(tmp_path / f"{size}") == content(tmp_path / "one")


def test_a_run_that_fails_goes_on_with_the_shard_it_was_at(corpus, tiny_model, tmp_path, monkeypatch):
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "whole")
    encode, names = shards.encode_chunks, []

    def failing(encoder, texts, *, ids):
        names.append(ids[0])
        if len(names) == 3:
            raise OSError("the machine is gone")
        return encode(encoder, texts, ids=ids)

    monkeypatch.setattr(shards, "encode_chunks", failing)
    with pytest.raises(OSError, match="gone"):
        encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")
    with pytest.raises(FileNotFoundError, match="3 of 5 shards are missing"):
        read_shards(tmp_path / "vectors")
    assert len(encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")) == 3
    assert len(names) == 3 + 3
    assert content(tmp_path / "vectors") == content(tmp_path / "whole")


def test_a_shard_of_another_model_or_of_other_rows_is_refused(corpus, tiny_model, tmp_path):
    vectors = tmp_path / "vectors"
    encode_shards(tiny_model, corpus, output_dir=vectors)
    before = content(vectors)
    edit(corpus / "000002.parquet", lambda table: table.set_column(5, "page", pyarrow.array([7] * len(table))))
    with pytest.raises(ValueError, match=r"000002\.parquet was made of other rows"):
        encode_shards(tiny_model, corpus, output_dir=vectors)
    assert content(vectors) == before
    (vectors / "000002.parquet").unlink()
    assert len(encode_shards(tiny_model, corpus, output_dir=vectors)) == 1
    with torch.no_grad():
        next(iter(tiny_model.parameters())).add_(1e-3)
    with pytest.raises(ValueError, match=r"shards\.json was made by another model"):
        encode_shards(tiny_model, corpus, output_dir=vectors)
    with pytest.raises(ValueError, match="did not make the index"):
        et.Retriever(tiny_model, read_shards(vectors))


def test_a_shard_that_came_from_another_model_is_not_read(corpus, tiny_model, tmp_path):
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")
    with torch.no_grad():
        next(iter(tiny_model.parameters())).add_(1e-3)
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "others")
    (tmp_path / "others" / "000001.parquet").replace(tmp_path / "vectors" / "000001.parquet")
    with pytest.raises(ValueError, match=r"000001\.parquet was made by another model"):
        read_shards(tmp_path / "vectors")


def test_a_torn_shard_is_named_with_the_remedy(corpus, tiny_model, tmp_path):
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")
    torn = tmp_path / "vectors" / "000003.parquet"
    torn.write_bytes(torn.read_bytes()[:-9])
    for read in (read_shards, lambda folder: encode_shards(tiny_model, corpus, output_dir=folder)):
        with pytest.raises(ValueError, match=r"000003\.parquet is damaged.*Delete it"):
            read(tmp_path / "vectors")


def test_any_parquet_file_with_ids_and_texts_is_a_shard_and_others_are_refused(tiny_model, tmp_path):
    def encoded(name, **columns):
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table(columns), tmp_path / name / "part.parquet")
        encode_shards(tiny_model, tmp_path / name, output_dir=tmp_path / name / "vectors")
        return read_shards(tmp_path / name / "vectors")

    index = encoded("own", text=["the pump", "a door"], _id=[12, 7], stars=[1, 2])
    assert index.ids == ["12", "7"]
    assert index.texts() == ["the pump", "a door"]
    np.testing.assert_allclose(
        index.vectors, tiny_model.encode_document(["the pump", "a door"], normalize_embeddings=True), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"part\.parquet has no column 'text'; it has \['_id', 'body'\]"):
        encoded("other", _id=["a"], body=["the pump"])
    with pytest.raises(ValueError, match="null"):
        encoded("null", _id=["a"], text=pyarrow.array([None], pyarrow.string()))
    with pytest.raises(ValueError, match=r"part\.parquet: The chunk id 'a' occurs more than once"):
        encoded("twice", _id=["a", "a"], text=["the pump", "a door"])
    with pytest.raises(ValueError, match="cannot go to the folder of the corpus"):
        encode_shards(tiny_model, tmp_path / "own", output_dir=tmp_path / "own")
    with pytest.raises(FileNotFoundError, match="no Parquet files"):
        encode_shards(tiny_model, tmp_path / "nowhere", output_dir=tmp_path / "vectors")


def test_an_id_in_two_shards_is_refused(tiny_model, tmp_path):
    write_corpus([*CHUNKS[:3], CHUNKS[0]], tmp_path / "corpus", chunks_per_shard=2)
    encode_shards(tiny_model, tmp_path / "corpus", output_dir=tmp_path / "vectors")
    with pytest.raises(ValueError, match="occurs more than once"):
        read_shards(tmp_path / "vectors")


def test_a_corpus_is_written_to_a_new_folder_from_a_stream(tmp_path):
    write_corpus(iter(CHUNKS), tmp_path / "corpus", context=("headings",), chunks_per_shard=10)
    tables = [parquet.read_table(path) for path in sorted((tmp_path / "corpus").iterdir())]
    assert [len(table) for table in tables] == [10, 10, 2]
    written = {row["_id"]: row["text"] for table in tables for row in table.to_pylist()}
    assert written == {chunk.id: chunk.text_with(("headings",)) for chunk in CHUNKS}
    with pytest.raises(FileExistsError, match="Choose another path"):
        write_corpus(CHUNKS, tmp_path / "corpus")


@given(st.lists(st.lists(st.sampled_from(THINGS), max_size=4).map(" ".join), min_size=1, max_size=9), st.integers(1, 4))
def test_words_are_counted_as_in_one_index(texts, size):
    words = shards._Words()
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    lengths = np.concatenate([words.add(SimpleNamespace(texts=lambda part=part: part)) for part in parts])
    hashes, counts = words.merged()
    whole = shards.WordIndex.build(texts)
    np.testing.assert_array_equal(hashes, whole.hashes)
    np.testing.assert_array_equal(counts, whole.num_chunks_with)
    np.testing.assert_array_equal(lengths, whole.lengths)


def test_an_engine_ingests_shards_and_ranks_as_the_retriever_made_of_the_chunks(corpus, tiny_model, tmp_path):
    pytest.importorskip("milvus_lite", reason="needs Milvus Lite")
    exact, address = et.Retriever.from_chunks(tiny_model, CHUNKS), str(tmp_path / "chunks.db")
    exact.save(tmp_path / "retriever")
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors")
    shards_to_engine(tmp_path / "vectors", address)
    served = et.Retriever.from_engine(tmp_path / "retriever", address)
    assert len(served) == len(CHUNKS)
    for question in QUESTIONS:
        found, wanted = served.search(question), exact.search(question)
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-5)

    write_corpus([*CHUNKS[:3], CHUNKS[0]], tmp_path / "twice", chunks_per_shard=2)
    encode_shards(tiny_model, tmp_path / "twice", output_dir=tmp_path / "others")
    with pytest.raises(ValueError, match="have 4 chunks, but only 3 different ids"):
        shards_to_engine(tmp_path / "others", address, name="twice")
    with pytest.raises(ValueError, match="being changed when their writer stopped"):
        et.Retriever.from_engine(tmp_path / "retriever", address, name="twice")


KILLED = """
import os, signal, sys
from embedtune.retrieval import shards

calls, encode = [], shards.encode_chunks
assert shards.this_process()[1] == 2


def dying(encoder, texts, *, ids):
    calls.append(ids)
    if sys.argv[4] == "die" and shards.this_process()[0] == 1 and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(encoder, texts, ids=ids)


shards.encode_chunks = dying
new = shards.encode_shards(sys.argv[1], sys.argv[2], output_dir=sys.argv[3])
assert len(new) == len(calls)
print(f"NEW {len(new)}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_two_processes_of_which_one_is_killed_go_on_and_write_what_one_writes(
    corpus, tiny_model, tiny_model_folder, tmp_path
):
    arguments = tiny_model_folder, corpus, tmp_path / "two"
    assert launch(tmp_path, KILLED, *arguments, "die").returncode != 0
    done = {path.stem for path in (tmp_path / "two").glob("*.parquet")}
    assert "000001" in done  # the first of the process that was killed
    assert "000003" not in done
    assert not done & {path.stem for path in (tmp_path / "two").iterdir() if path.suffix != ".parquet"}
    again = launch(tmp_path, KILLED, *arguments, "live")
    assert again.returncode == 0, again.stderr[-4000:]
    new = [int(line.split()[1]) for line in again.stdout.splitlines() if line.startswith("NEW")]
    assert sum(new) == 5 - len(done)
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "one")
    assert content(tmp_path / "two") == content(tmp_path / "one")


def run_example(name, model, output, *options, launcher=()):
    """Run an example on the sample in this machine's processes, and return what it prints."""
    command = [*launcher, str(ROOT / "examples" / name), "--model", str(model), "--output", str(output)]
    result = subprocess.run(
        [sys.executable, *command, "--chunks-per-shard", "4", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
def test_the_example_runs_alone_and_under_accelerate_and_writes_the_same(tiny_model_folder, tmp_path):
    for name, size, launcher in (("one", 1, ()), ("two", 2, ACCELERATE)):
        options = tiny_model_folder, tmp_path / name, "--documents", "5"
        printed = run_example("encode_corpus.py", *options, launcher=launcher)
        assert all(f"process {rank} of {size}" in printed for rank in range(1, size + 1))
    assert content(tmp_path / "two" / "vectors") == content(tmp_path / "one" / "vectors")
    assert json.loads((tmp_path / "one" / "vectors" / shards.MANIFEST).read_text())["similarity"] == "cosine"


@pytest.mark.slow
def test_the_example_mines_and_evaluates_the_same_alone_and_by_two_processes_of_either_launcher(
    tiny_model_folder, tmp_path
):
    evaluations, negatives = [], []
    for name, size, launcher in (("one", 1, ()), ("torchrun", 2, TORCHRUN), ("accelerate", 2, ACCELERATE)):
        options = tiny_model_folder, tmp_path / name, "--documents", "9"
        printed = run_example("shards.py", *options, launcher=launcher)
        for step in ("encoded", "mined", "evaluated"):
            assert all(f"process {rank} of {size}: {step} in" in printed for rank in range(1, size + 1))
        evaluations.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
        negatives.append(parquet.read_table(tmp_path / name / "negatives.parquet").to_pydict())
    assert evaluations == evaluations[:1] * 3
    assert evaluations[0]["name"] == tiny_model_folder.name
    assert negatives == negatives[:1] * 3
    assert list(negatives[0]) == ["anchor", "positive", "negative_1", "negative_2", "label"]


def test_any_share_of_the_shards_can_be_encoded_without_a_launcher(corpus, tiny_model, tmp_path):
    new = [encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors", share=(i, 5)) for i in (3, 0, 1, 4, 2)]
    assert [[path.stem for path in paths] for paths in new] == [[f"{i:06}"] for i in (3, 0, 1, 4, 2)]
    encode_shards(tiny_model, corpus, output_dir=tmp_path / "one")
    assert content(tmp_path / "vectors") == content(tmp_path / "one")


@pytest.mark.parametrize("share", [(4, 4), (-1, 4), (0, 0)])
def test_a_share_that_there_is_not_is_refused_instead_of_leaving_shards_out(corpus, tiny_model, tmp_path, share):
    with pytest.raises(ValueError, match=r"share=\(.*\(0, 4\) to \(3, 4\)"):
        encode_shards(tiny_model, corpus, output_dir=tmp_path / "vectors", share=share)
    assert not (tmp_path / "vectors").exists()


@pytest.mark.slow
def test_two_workers_of_ray_write_what_one_process_writes_and_go_on_where_they_stopped(tiny_model_folder, tmp_path):
    pytest.importorskip("ray.data", reason="needs ray[data]")
    example = [str(ROOT / "examples" / "encode_on_ray.py"), "--model", str(tiny_model_folder), "--documents", "5"]
    example += ["--output", str(tmp_path / "ray"), "--chunks-per-shard", "4", "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}

    def run():
        done = subprocess.run(
            [sys.executable, *example], capture_output=True, text=True, check=False, env=environment, timeout=400
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    num_shards = run().split()[0]
    corpus, vectors = tmp_path / "ray" / "corpus", tmp_path / "ray" / "vectors"
    assert int(num_shards) == len(list(corpus.iterdir())) > 2
    encode_shards(tiny_model_folder, corpus, output_dir=tmp_path / "one")
    assert content(vectors) == content(tmp_path / "one")
    (vectors / "000001.parquet").unlink()
    assert run().startswith(f"1 of {num_shards} shards encoded")
    assert content(vectors) == content(tmp_path / "one")
