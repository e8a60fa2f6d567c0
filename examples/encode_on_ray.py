"""Encode a corpus in shards on a Ray cluster, and go on where a run was stopped: pip install 'ray[data]'.

    python examples/encode_on_ray.py --workers 2                                # the sample handbook, on this machine
    python examples/encode_on_ray.py --corpus FOLDER --workers 8 --gpus 1       # Parquet files with the columns _id and text
    RAY_ADDRESS=ray://head:10001 python examples/encode_on_ray.py ...           # on a cluster, whose machines all see the folders

What it writes is what examples/encode_corpus.py writes: `read_shards`, `shards_to_engine`, `search_shards` and `mine_shards` read it.
"""

import argparse
from pathlib import Path

import ray
from encode_corpus import write_sample

import embedtune as et
from embedtune.retrieval.shards import encode_shards


class Encoder:
    """A worker that keeps the model, and encodes one shard after the other."""

    def __init__(self, model_name: str, corpus: str, output: str, num_shards: int) -> None:
        self.model = et.load_model(model_name)
        self.arguments, self.num_shards = {"corpus": corpus, "output_dir": output}, num_shards

    def __call__(self, batch):
        new = [encode_shards(self.model, share=(int(i), self.num_shards), **self.arguments) for i in batch["id"]]
        return {"shard": [path.name for paths in new for path in paths]}


def main(
    corpus: str | None = None,
    *,
    model_name: str = "minilm",
    output: str = "out/encoded",
    workers: int = 2,
    gpus: float = 0,
    documents: int | None = None,
    chunks_per_shard: int = 16,
) -> list[str]:
    source, vectors = Path(corpus or f"{output}/corpus").absolute(), Path(output, "vectors").absolute()
    if corpus is None and not source.exists():
        write_sample(source, documents=documents, chunks_per_shard=chunks_per_shard)
    num_shards = len(list(source.glob("*.parquet")))
    shards = ray.data.from_items([{"id": i} for i in range(num_shards)], override_num_blocks=num_shards).map_batches(
        Encoder,
        fn_constructor_args=(model_name, str(source), str(vectors), num_shards),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus,
    )
    new = [row["shard"] for row in shards.take_all()]
    print(f"{len(new)} of {num_shards} shards encoded by {workers} workers")
    return new


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="a folder with Parquet files; by default the sample handbook")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--output", default="out/encoded", help="where vectors go, in vectors/")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--documents", type=int, help="of the sample; all by default")
    parser.add_argument("--chunks-per-shard", type=int, default=16, help="of the sample")
    main(**vars(parser.parse_args()))
