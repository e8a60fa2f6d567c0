"""Encode a corpus in shards, by any number of processes, and go on where a run was stopped.

    python examples/encode_corpus.py                                          # the sample handbook, in this process
    torchrun --nproc_per_node 2 examples/encode_corpus.py                     # by two
    accelerate launch --num_processes 4 examples/encode_corpus.py --corpus FOLDER  # Parquet files with the columns _id and text

    python examples/encode_corpus.py --question "Who is called at night?"     # then ask, in one process
    python examples/encode_corpus.py --to-engine handbook.db                  # or write them to Milvus

With the launcher's options for several machines, all must see the corpus and the output. A shard that is there is not encoded again.
"""

import argparse
import time
from pathlib import Path

import embedtune as et
from embedtune.retrieval.shards import (
    device_of_process,
    encode_shards,
    read_shards,
    shards_to_engine,
    this_process,
    write_corpus,
)


def write_sample(folder: Path, *, documents: int | None, chunks_per_shard: int) -> None:
    sample = et.load_sample(num_documents=documents)
    write_corpus(et.chunk_documents(sample.documents, max_tokens=250), folder, chunks_per_shard=chunks_per_shard)


def main(
    corpus: str | None = None,
    *,
    model_name: str = "minilm",
    output: str = "out/encoded",
    batch_size: int = 32,
    documents: int | None = None,
    chunks_per_shard: int = 16,
    question: str | None = None,
    to_engine: str | None = None,
) -> None:
    # 1. The first process writes the sample; its folder appears once it is whole
    rank, num_processes = this_process()
    source, vectors = Path(corpus or f"{output}/corpus"), f"{output}/vectors"
    if corpus is not None and not source.exists():
        raise FileNotFoundError(f"There is no folder {corpus}.")
    if corpus is None and rank == 0 and not source.exists():
        write_sample(source, documents=documents, chunks_per_shard=chunks_per_shard)
    while not source.exists():
        time.sleep(0.1)

    # 2. Encode the shards of this process
    model = et.load_model(model_name, device=device_of_process())
    start, computed = time.perf_counter(), time.process_time()
    new = encode_shards(model, source, output_dir=vectors, batch_size=batch_size)
    seconds, computed = time.perf_counter() - start, time.process_time() - computed
    process = f"process {rank + 1} of {num_processes}"
    print(f"{process}: {len(new)} shards encoded in {seconds:.1f} s, {computed:.1f} s of processor time", flush=True)
    if num_processes > 1:
        return

    # 3. All shards are there. Ask, or hand them to an engine
    if question is not None:
        for hit in et.Retriever(model, read_shards(vectors)).search(question, k=3):
            print(f"  {hit.score:.2f}  {hit.id}")
    if to_engine is not None:
        shards_to_engine(vectors, to_engine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="a folder with Parquet files; by default the sample handbook")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--output", default="out/encoded", help="where vectors go, in vectors/")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--documents", type=int, help="of the sample; all by default")
    parser.add_argument("--chunks-per-shard", type=int, default=16, help="of the sample")
    parser.add_argument("--question", help="ask it, in one process")
    parser.add_argument("--to-engine", help="an address of Milvus")
    main(**vars(parser.parse_args()))
