"""Turn a folder of documents into questions and a dataset to tune on.

    python examples/generate_questions.py handbook/ --estimate                  # what will it cost? sends nothing
    python examples/generate_questions.py handbook/ --budget 5                  # live: minutes
    python examples/generate_questions.py handbook/ --budget 5 --mode batch     # half the price, up to a day
    python examples/generate_questions.py handbook/ --local Qwen/Qwen3-4B-Instruct-2507   # nothing leaves this machine

Needs `pip install 'embedtune[anthropic]'` and a key in ANTHROPIC_API_KEY, except with --local. It can be stopped at any
time: the same command continues, and pays nothing twice.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import embedtune as et


def main(
    folder: str,
    *,
    out: str = "out/questions",
    model: str = "claude-haiku-5-5",
    local: str | None = None,
    llm: object = None,
    tokenizer: object = "o200k_base",
    mode: str = "live",
    budget: float | None = None,
    per_chunk: int = 4,
    estimate: bool = False,
):
    # 1. Documents to chunks
    chunks = et.chunk_documents(et.read_documents(folder), max_tokens=400, tokenizer=tokenizer)

    # 2. The language model, and what it will cost
    llm = llm or (et.TransformersLLM(local) if local else et.AnthropicLLM(model))
    print(et.estimate_cost(chunks, llm, per_chunk=per_chunk))
    if estimate:
        return None

    # 3. Chunks to questions. Every reply is stored before it is read.
    questions = et.generate_questions(
        chunks, llm, per_chunk=per_chunk, output_dir=Path(out, "ledger"), mode=mode, budget_usd=budget
    )
    print(questions)
    print(questions.review(3))  # read some before you train on them

    # 4. Chunks and questions to a dataset whose splits do not leak
    data = et.build_dataset(chunks, questions, test_size=0.2, dev_size=0.1, seed=0)
    data.save_to_disk(Path(out, "data"))
    print(data)
    return data


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", default="out/questions")
    parser.add_argument("--model", default="claude-haiku-5-5")
    parser.add_argument("--local", help="a chat model of transformers to run on this machine instead")
    parser.add_argument("--mode", choices=["live", "batch"], default="live")
    parser.add_argument("--budget", type=float, help="the most that may be spent, in dollars")
    parser.add_argument("--per-chunk", type=int, default=4)
    parser.add_argument("--estimate", action="store_true", help="say what it will cost, and stop")
    main(**vars(parser.parse_args()))
