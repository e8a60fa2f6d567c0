"""Fine-tune gte-Qwen2 on your own chunks and questions, on one GPU, and find out whether that made it better.

    python examples/finetune_gte_qwen2.py my-dataset

`my-dataset` is a folder that `build_dataset(...).save_to_disk(...)` wrote. Of GPU memory the 1.5B model takes 3 GB with LoRA and
25 GB with --full (weights, gradients, AdamW's moments), the 7B model 14 GB with LoRA; activations come on top and grow
with the batch and the length of the texts. Needs `pip install 'embedtune[lora]'`.
"""

import argparse

import torch

import embedtune as et
from embedtune.evaluation.verdict import Verdict


def main(
    data: str | et.RetrievalDataset,
    *,
    model_name: str = "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    output_dir: str = "out/gte-qwen2",
    loss: str = "in-batch",
    full: bool = False,
    epochs: float = 2,
    batch_size: int = 16,
    max_seq_length: int = 1024,
) -> Verdict:
    data = et.RetrievalDataset.load_from_disk(data) if isinstance(data, str) else data
    gpu = torch.cuda.is_available()
    memory = {"bf16": True, "gradient_checkpointing": True} if gpu else {}  # the latter is needed at such lengths

    # 1. LoRA: a frozen base in bfloat16 and small float32 matrices. Full: all weights, in float32, computed in bfloat16
    model = et.load_gte_qwen2(
        model_name,
        lora=not full,
        dtype="bfloat16" if gpu and not full else "float32",
        max_seq_length=max_seq_length,
        task="Given a question, retrieve the passage of the documents that answers it",
    )
    et.check_model(model).raise_if_failed()

    # 2. Before
    evaluator = et.TopKEvaluator(data, "test", batch_size=batch_size)
    base = evaluator.evaluate(model, name="base")

    # 3. Train. "triplet" and "cosine" are the losses of Sharafudinov (2024); with random negatives they made retrieval from
    #    unseen documents worse in our benchmarks
    args = et.TuningArguments(
        output_dir,
        loss=loss,
        num_train_epochs=epochs,
        learning_rate=1e-5 if full else 1e-4,
        per_device_train_batch_size=batch_size,
        **memory,
        save_total_limit=1,
    )
    trainer = et.EmbeddingTrainer(model, args, data=data)
    trainer.train()

    # 4. After. The saved model has the LoRA merged and is compared with the model in memory
    verdict = et.compare(base, evaluator.evaluate(trainer.model, name="tuned"))
    trainer.save_model(f"{output_dir}/model")
    et.check_model(trainer.model, folder=f"{output_dir}/model").raise_if_failed()
    print(verdict)
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder that save_to_disk wrote")
    parser.add_argument("--model-name", default="Alibaba-NLP/gte-Qwen2-1.5B-instruct", help="on the Hub, or a folder")
    parser.add_argument("--output-dir", default="out/gte-qwen2", help="where checkpoints and the model go")
    parser.add_argument("--loss", default="in-batch", choices=["in-batch", "triplet", "cosine"])
    parser.add_argument("--full", action="store_true", help="train all weights instead of a LoRA")
    parser.add_argument("--epochs", type=float, default=2, help="passes over the training questions")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--max-seq-length", type=int, default=1024, help="longer chunks are truncated to this number of tokens"
    )
    main(**vars(parser.parse_args()))
