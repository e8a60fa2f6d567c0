"""Find hard negatives in a corpus in shards, and evaluate on all of it, by any number of processes.

    torchrun --nproc_per_node 2 examples/shards.py                              # the sample handbook
    accelerate launch --multi_gpu --num_processes 2 examples/shards.py          # the same; it needs no GPU
    python examples/shards.py                                                   # the same, in this process

    torchrun --nproc_per_node 2 examples/shards.py --corpus FOLDER --data FOLDER   # Parquet files, and a saved RetrievalDataset

Processes find together, and each learns what all have found. The dataset holds the documents that its questions are about; the corpus
holds these and any number of others. All machines must see the folders.
"""

import argparse
import time
from pathlib import Path

from encode_corpus import write_sample

import embedtune as et
from embedtune.retrieval.retrieve import name_of
from embedtune.retrieval.shards import device_of_process, encode_shards, this_process
from embedtune.training.negatives.mine_shards import mine_shards


def main(
    corpus: str | None = None,
    data: str | None = None,
    *,
    model_name: str = "minilm",
    output: str = "out/shards",
    num_negatives: int = 2,
    documents: int | None = None,
    chunks_per_shard: int = 16,
) -> None:
    # 1. Questions, and a corpus in Parquet files, whose folder appears once it is whole
    rank, num_processes = this_process()
    source, vectors = Path(corpus or f"{output}/corpus"), f"{output}/vectors"
    if corpus is None and rank == 0 and not source.exists():
        write_sample(source, documents=documents, chunks_per_shard=chunks_per_shard)
    while not source.exists():
        time.sleep(0.1)
    if data is None:
        sample = et.load_sample(num_documents=documents)
        chunks = et.chunk_documents(sample.documents, max_tokens=250)
        questions = et.build_dataset(chunks, sample.questions_for(chunks))
    else:
        questions = et.RetrievalDataset.load_from_disk(data)

    # 2. Encode, mine and evaluate: each process its shards
    model = et.load_model(model_name, device=device_of_process())
    steps = {
        "encoded": lambda: encode_shards(model, source, output_dir=vectors),
        "mined": lambda: mine_shards(model, questions, vectors, num_negatives=num_negatives),
        "evaluated": lambda: evaluate(model, questions, vectors),
    }
    found = {}
    for name, step in steps.items():
        start, computed = time.perf_counter(), time.process_time()
        found[name] = step()
        seconds, computed = time.perf_counter() - start, time.process_time() - computed
        print(
            f"process {rank + 1} of {num_processes}: {name} in {seconds:.1f} s, {computed:.1f} s of processor time\n",
            end="",
            flush=True,
        )

    # 3. Each process has the same rows and the same result; the first one keeps them
    if rank == 0:
        found["mined"].to_parquet(
            f"{output}/negatives.parquet"
        )  # train on it: EmbeddingTrainer(..., train_dataset=rows)
        found["evaluated"].save(f"{output}/evaluation.json")
        print(found["evaluated"])


def evaluate(model, questions: et.RetrievalDataset, vectors: str):
    retriever = et.Retriever.from_dataset(model, questions)  # how much words count; or et.Retriever.load(...)
    return et.TopKEvaluator(questions).evaluate_shards(retriever, vectors, name=name_of(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="a folder with Parquet files; by default the sample handbook")
    parser.add_argument("--data", help="a folder of RetrievalDataset.save_to_disk; by default the sample's questions")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--output", default="out/shards", help="where vectors, negatives and the evaluation go")
    parser.add_argument("--num-negatives", type=int, default=2)
    parser.add_argument("--documents", type=int, help="of the sample; all by default")
    parser.add_argument("--chunks-per-shard", type=int, default=16, help="of the sample")
    main(**vars(parser.parse_args()))
