"""What descriptions of chunks are worth: how many questions of the sample find their chunk with each context.

    python benchmarks/descriptions.py                                   # a script plays the language model
    python benchmarks/descriptions.py --model claude-haiku-4-5          # needs a key; quotes the cost first
    python benchmarks/descriptions.py --model claude-haiku-4-5 --budget 1

The script knows no more than the document's title and its first sentence, which it repeats before each chunk: a lower
bound, not what a language model would write.
"""

from __future__ import annotations

import argparse
import re

import embedtune as et
from embedtune.llms.protocol import Completion, Price
from embedtune.questions.descriptions import estimate_descriptions, generate_descriptions

CONTEXTS = [(), ("title",), ("title", "headings"), ("description",), ("title", "headings", "description")]


class Script:
    """Describes a passage by the title and the first sentence of its document."""

    name, price, max_tokens = "script", Price(0, 0), 100

    def prepare(self):
        pass

    def body(self, request):
        return {"text": request.text}

    def send(self, body):
        document = body["text"].partition("<document>")[2].partition("</document>")[0]
        title = re.search(r"<document_title>(.*)</document_title>", document)
        lines = [line for line in document.splitlines() if line and not line.startswith(("<", "#", "-", "|"))]
        return {"title": title[1] if title else "", "sentence": re.split(r"(?<=[.!?]) ", lines[0])[0] if lines else ""}

    def read(self, reply):
        text = f"{reply['title']}: {reply['sentence']}".replace('"', "'")
        return Completion(f'{{"description": "{text}"}}')


def measure(num_tokens: int, llm, *, output_dir: str, budget_usd: float | None) -> None:
    sample, model = et.load_sample(), et.load_model("minilm", device="cpu")
    chunks = et.chunk_documents(sample.documents, max_tokens=num_tokens, tokenizer=model)
    described = generate_descriptions(chunks, sample.documents, llm, output_dir=output_dir, budget_usd=budget_usd)
    questions = sample.questions_for(chunks)
    print(f"{len(chunks)} chunks of at most {num_tokens} tokens, {len(questions)} questions")
    for context in CONTEXTS:
        retriever = et.Retriever.from_chunks(model, described, context=context)
        found = retriever.search_batch([question.text for question in questions], k=10)
        ranks = [
            next((rank for rank, hit in enumerate(hits, start=1) if hit.id in question.chunk_ids), None)
            for question, hits in zip(questions, found, strict=True)
        ]
        at = {k: sum(rank is not None and rank <= k for rank in ranks) / len(ranks) for k in (1, 3, 10)}
        label = " + ".join(context) or "nothing"
        print(f"  {label:32} accuracy@1 {at[1]:.3f}  @3 {at[3]:.3f}  @10 {at[10]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--tokens", type=int, nargs="+", default=[60, 120, 250])
    parser.add_argument("--output", default=".embedtune")
    options = parser.parse_args()
    chosen = et.AnthropicLLM(options.model) if options.model else Script()
    for size in options.tokens:
        if options.model:
            documents = et.load_sample().documents
            pieces = et.chunk_documents(documents, max_tokens=size, tokenizer=et.load_model("minilm", device="cpu"))
            print(estimate_descriptions(pieces, documents, chosen))
        if not options.model or options.budget:
            measure(size, chosen, output_dir=options.output, budget_usd=options.budget)
