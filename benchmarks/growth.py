"""Time and memory of each step by the number of chunks, from building a dataset to the feedback log.

    python benchmarks/growth.py --chunks 10000 100000

Texts of 60 words whose frequencies follow Zipf's law, ten chunks a document, one question for every tenth chunk up to 10,000, and a
log entry for each. Vectors of 64 dimensions come from a table of random words, so that the model costs next to nothing.
One thread. Each size runs in a process of its own. Printed are processor seconds, and the largest memory that the process held
while a step ran, all that was made before it included (Linux).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIM, NUM_WORDS, MAX_QUESTIONS = 64, 50_000, 10_000


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(name: str, step: Callable[[], Any]) -> Any:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start, wall = time.process_time(), time.perf_counter()
    result = step()
    cpu, seconds = time.process_time() - start, time.perf_counter() - wall
    print(f"  {name:52} {cpu:8.1f} s of processor {seconds:8.1f} s {peak_mb():8.0f} MB", flush=True)
    return result


def run(size: int, folder: Path) -> None:
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    import embedtune as et
    from embedtune.evaluation.report.page import write_report

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(NUM_WORDS)])
    weights = 1 / np.arange(1, NUM_WORDS + 1)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = rng.standard_normal((NUM_WORDS, DIM), dtype=np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu")
    chunks, questions = [], []
    for start in range(0, size, 10_000):
        drawn = rng.choice(words, size=(min(10_000, size - start), 60), p=weights / weights.sum())
        for i, row in enumerate(drawn, start=start):
            text = " ".join(row)
            begin = (i % 10) * 1000
            chunks.append(et.Chunk(f"d{i // 10}#{i % 10}", f"d{i // 10}", text, begin, begin + len(text)))
            if i % max(10, size // MAX_QUESTIONS) == 0:
                questions.append(et.Question(f"q{i}", f"what is {' '.join(row[10:18])}?", (chunks[-1].id,)))
    print(
        f"{size:,} chunks, {len(questions):,} questions; {peak_mb():.0f} MB with the libraries and the texts",
        flush=True,
    )

    data = measured("build_dataset, groups and splits included", lambda: et.build_dataset(chunks, questions))
    measured("save_to_disk", lambda: data.save_to_disk(folder / "data"))
    data = measured("load_from_disk", lambda: et.RetrievalDataset.load_from_disk(folder / "data"))
    measured("triplets, 5 negatives each", lambda: data.triplets("train"))
    evaluator = et.TopKEvaluator(data)
    words_alone = measured("evaluate BM25", lambda: evaluator.evaluate(et.BM25(), name="bm25"))
    result = measured("evaluate a model", lambda: evaluator.evaluate(model, name="model"))
    verdict = measured("compare", lambda: et.compare(words_alone, result, training=data))
    measured("write_report", lambda: write_report(verdict, folder / "report.html", data=data))
    make = et.Retriever.from_chunks
    retriever = measured("Retriever.from_chunks", lambda: make(model, chunks, word_weight=1.0, show_progress_bar=False))
    texts = [question.text for question in questions[:100]]
    measured("100 questions to it", lambda: [retriever.search(text) for text in texts])
    new = et.Chunk("new#0", "new", "one more chunk", 0, 14)
    measured("add a chunk, and a question", lambda: (retriever.add([new]), retriever.search("more")))
    measured("save its index", lambda: retriever.index.save(folder / "index"))
    measured("load its index", lambda: type(retriever.index).load(folder / "index"))
    log = et.FeedbackLog(folder / "log.sqlite")
    found = [(chunk.id, 0.5) for chunk in chunks[:10]]
    measured(f"{len(questions):,} records in a log", lambda: [log.record(one.text, found) for one in questions])
    measured("questions and misses of the log", lambda: (log.questions(), log.misses(k=5)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    chosen = parser.parse_args()
    if len(chosen.chunks) == 1:
        with tempfile.TemporaryDirectory(prefix="embedtune-growth-") as place:
            run(chosen.chunks[0], Path(place))
    else:
        for number in chosen.chunks:
            subprocess.run([sys.executable, __file__, "--chunks", str(number)], check=True)
