"""Fine-tune jina-embeddings-v3 on your own chunks and questions, on one GPU, and find out whether that made it better.

    python examples/finetune_jina_v3.py my-dataset --train adapters

`my-dataset` is a folder that `build_dataset(...).save_to_disk(...)` wrote. Of GPU memory the model takes 2.5 GB when its own two
adapters are trained and 9 GB when all of it is (weights, gradients, AdamW's moments); activations come on top and grow
with the batch and the length of the texts. Needs `pip install 'embedtune[lora]'`. The model and everything derived from it are licensed under
CC BY-NC 4.0: not for commercial use.
"""

import argparse

import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

import embedtune as et
from embedtune.evaluation.verdict import Verdict

LOSSES = {"in-batch": et.InBatchNegativesLoss, "triplet": et.TripletMarginLoss, "cosine": et.CosineEmbeddingLoss}


def main(
    data: str | et.RetrievalDataset,
    *,
    model_name: str = "jinaai/jina-embeddings-v3",
    output_dir: str = "out/jina-v3",
    loss: str = "in-batch",
    train: str = "adapters",
    mode: str = "asymmetric",
    matryoshka: list[int] | None = None,
    epochs: float = 3,
    batch_size: int = 32,
    max_seq_length: int = 1024,
) -> Verdict:
    data = et.RetrievalDataset.load_from_disk(data) if isinstance(data, str) else data
    # Computed in bfloat16, with float32 weights; gradient checkpointing trades time for memory, and is needed at such lengths
    memory = {"bf16": True, "gradient_checkpointing": True} if torch.cuda.is_available() else {}

    # 1. One base in memory, with a query adapter and a document adapter
    model = et.load_jina_v3(model_name, mode=mode, train=train, max_seq_length=max_seq_length)
    et.check_model(model).raise_if_failed()

    # 2. Before
    evaluator = et.TopKEvaluator(data, "test", batch_size=batch_size)
    base = evaluator.evaluate(model, name="base")

    # 3. Train. "triplet" and "cosine" are the losses of Sharafudinov (2024); with random negatives they made retrieval from
    #    unseen documents worse in our benchmarks
    args = et.TuningArguments(
        output_dir,
        num_train_epochs=epochs,
        learning_rate=1e-5 if train == "full" else 2e-4,
        per_device_train_batch_size=batch_size,
        **memory,
        save_total_limit=1,
    )
    objective = LOSSES[loss](model)
    if matryoshka:  # the first dimensions of an embedding are an embedding as well
        objective = MatryoshkaLoss(model, objective, matryoshka_dims=matryoshka)
    trainer = et.EmbeddingTrainer(model, args, data=data, loss=objective)
    trainer.train()

    # 4. After. The saved model is a plain Router of two merged models and is compared with the model in memory
    verdict = et.compare(base, evaluator.evaluate(trainer.model, name="tuned"))
    trainer.save_model(f"{output_dir}/model")
    et.check_model(trainer.model, folder=f"{output_dir}/model").raise_if_failed()
    print(verdict)
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder that save_to_disk wrote")
    parser.add_argument("--model-name", default="jinaai/jina-embeddings-v3", help="on the Hub, or a folder")
    parser.add_argument("--output-dir", default="out/jina-v3", help="where checkpoints and the model go")
    parser.add_argument("--loss", default="in-batch", choices=list(LOSSES))
    parser.add_argument("--train", default="adapters", choices=["adapters", "lora", "full"])
    parser.add_argument("--mode", default="asymmetric", choices=["asymmetric", "shared"])
    parser.add_argument("--matryoshka", type=int, nargs="*", help="dimensions to truncate embeddings to: 1024 256 64")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the training questions")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--max-seq-length", type=int, default=1024, help="longer chunks are truncated to this number of tokens"
    )
    main(**vars(parser.parse_args()))
