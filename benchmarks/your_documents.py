"""A folder of 200 mixed files goes through the README's lines, and each prints what it prints.

    python benchmarks/your_documents.py --num-files 200 --max-steps 20

A scripted language model writes two questions for each chunk, in the chunk's own words, so the figures say nothing about quality.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mixed_folder import make, written
from scripted_llm import ScriptedLLM

import embedtune as et
from embedtune.corpus.chunking import questions_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-files", type=int, default=200)
    parser.add_argument("--max-steps", type=int, default=20)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    make(folder / "drive", num_files=options.num_files)
    start = time.perf_counter()
    model = et.load_model("minilm", device="cpu")
    documents = et.read_documents(folder / "drive", question_column="question")
    chunks = et.chunk_documents(documents, max_tokens=200, tokenizer=model)
    print(len(documents), "documents,", len(chunks), "chunks")
    llm = ScriptedLLM(written)
    questions = et.generate_questions(chunks, llm, styles={"natural": 1, "keyword": 1}, output_dir=folder / "ledger")
    print(questions)
    data = et.build_dataset(chunks, [*questions, *questions_of(documents, chunks)], dev_size=0)
    print(data)
    args = et.TuningArguments("unused", max_steps=options.max_steps, use_cpu=True)
    run = et.tune(model, data, output_dir=folder / "out", args=args, num_folds=2)
    print(run)
    for hit in run.retriever.search(questions[0].text, k=3):
        print(f"{hit.score:.2f} {hit.id} page {hit.page}")
    print(f"{time.perf_counter() - start:.0f} seconds, report in {folder / 'out'}")


if __name__ == "__main__":
    main()
