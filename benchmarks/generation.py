"""How fast questions are generated: the share of the ideal rate that the ledger leaves, and a rerun.

    python benchmarks/generation.py

A server on loopback, in a process of its own, takes 50 ms for each reply. With 16 workers the ideal is 320 replies a
second. Needs the package anthropic, and no key.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anthropic

from embedtune.llms.anthropic import AnthropicLLM
from embedtune.llms.protocol import Completion, Price
from embedtune.questions.generation import generate_questions
from embedtune.questions.template import RequestTemplate, default_instructions
from embedtune.types import Chunk

SERVER = Path(__file__).parents[1] / "tests" / "llm_server.py"
KEY = "sk-ant-secret-0123456789"
NUM_WORDS = 20_000
WORDS = ["".join(random.Random(i).choices("aeiounrstlmdk", k=3 + i % 7)) for i in range(NUM_WORDS)]
WEIGHTS = [1 / (i + 10) for i in range(NUM_WORDS)]  # as in a natural language, few words are common


def make_chunks(number: int) -> list[Chunk]:
    texts = (" ".join(random.Random(i).choices(WORDS, WEIGHTS, k=300)) for i in range(number))
    return [Chunk(f"{i}.md#0", f"{i}.md", text, 0, len(text), title="Manual") for i, text in enumerate(texts)]


@contextmanager
def server(seconds: float):
    command = [sys.executable, str(SERVER), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


class Offline:
    """Answers at once, without a network, with a reply of the usual size."""

    name, price, max_tokens = "offline", Price(0, 0), 1000

    def body(self, request):
        return {"system": request.system, "text": request.text, "schema": dict(request.schema)}

    def prepare(self):
        pass

    def send(self, body):
        words = body["text"].split()[3:]
        some = [" ".join(words[i : i + 8]) for i in range(0, 32, 8)]
        return {"text": "\n".join(f"{i}. How is {text} done?\nAnswer: {text}" for i, text in enumerate(some, start=1))}

    def read(self, reply):
        return Completion(reply["text"], 900, 300)


def measure_rate(num_chunks: int, *, seconds: float, num_workers: int) -> None:
    chunks = make_chunks(num_chunks)
    with server(seconds) as url, tempfile.TemporaryDirectory() as folder:
        llm = AnthropicLLM("claude-haiku-5-5", client=anthropic.Anthropic(api_key=KEY, base_url=url))
        generate_questions(make_chunks(num_workers), llm, output_dir=Path(folder, "warm"), num_workers=num_workers)
        bodies = [llm.body(request_about(chunk)) for chunk in chunks]
        start = time.perf_counter()
        with ThreadPoolExecutor(num_workers) as pool:
            list(pool.map(llm.send, bodies))
        bare = num_chunks / (time.perf_counter() - start)
        start = time.perf_counter()
        generate_questions(chunks, llm, output_dir=folder, num_workers=num_workers)
        done = time.perf_counter()
        generate_questions(chunks, llm, output_dir=folder)
        # The rerun does all but sending and storing, so the difference is what sending and storing took.
        rate = num_chunks / ((done - start) - (time.perf_counter() - done))
    ideal = num_workers / seconds
    print(f"{num_chunks} chunks, {num_workers} workers, replies after {1000 * seconds:.0f} ms: ideal {ideal:.0f}/s")
    print(f"  SDK alone, nothing kept      {bare:6.0f}/s  {bare / ideal:4.0%} of the ideal")
    print(
        f"  sent, and stored on disk     {rate:6.0f}/s  {rate / ideal:4.0%} of the ideal, {rate / bare:.0%} of the SDK"
    )


def request_about(chunk: Chunk):
    return RequestTemplate(default_instructions(), per_chunk=4, seed=1).fill(chunk)


def measure_rerun(num_chunks: int) -> None:
    chunks = make_chunks(num_chunks)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        first = generate_questions(chunks, Offline(), output_dir=folder)
        filled = time.perf_counter() - start
        start = time.perf_counter()
        again = generate_questions(chunks, Offline(), output_dir=folder)
        rerun = time.perf_counter() - start
    same = "the same questions" if again == first else "OTHER QUESTIONS"
    print(f"{num_chunks} chunks, {len(first)} questions: first run {filled:.1f} s, rerun {rerun:.1f} s, {same}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--stored", type=int, default=10_000)
    options = parser.parse_args()
    measure_rate(options.chunks, seconds=options.seconds, num_workers=options.workers)
    measure_rerun(options.stored)
