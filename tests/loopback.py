"""The world that the documentation and the notebooks speak of, on loopback: language models, the Hub, a folder of documents."""

from __future__ import annotations

import os
from contextlib import contextmanager

import hub_server
import llm_server
import model_repositories

import embedtune as et

FIRST_STEPS = """
import embedtune as et

name = "BAAI/bge-base-en-v1.5"
model = et.load_model(name, device="cpu")
sample = et.load_sample(num_documents=10)
chunks = et.chunk_documents(sample.documents, max_tokens=120, tokenizer=model)
known = {document.id for document in sample.documents[:5]}
answerable = sample.questions_for(chunks)
questions = [q for q in answerable if q.chunk_ids[0].partition("#")[0] in known]
data = et.build_dataset(chunks, questions, test_size=0.3, test_seen_size=0.2, seed=0)
evaluator = et.TopKEvaluator(data, split="test")
before = evaluator.evaluate(model, name="base")
base = et.load_model(name, device="cpu")
args = et.TuningArguments("out/handbook", max_steps=2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
trainer = et.EmbeddingTrainer(model, args, data=data)
trainer.train()
verdict = et.compare(before, evaluator.evaluate(trainer.model, name="tuned"), evaluator.evaluate(et.BM25()))
trainer.save_model("out/handbook/model")
tuned, llm, question = trainer.model, et.AnthropicLLM("claude-haiku-5-5"), "Who is called at night?"
retriever = et.Retriever.from_dataset(tuned, data, words=et.learn_words(data, base))
retriever.save("out/handbook/retriever")
log = et.FeedbackLog("feedback.sqlite")
for asked in [q for q in answerable if q not in questions]:
    found = retriever.search(asked.text)
    log.name_chunks(log.record(asked.text, found), [next(c for c in chunks if c.id == asked.chunk_ids[0])], by="Ada")
"""
"""What a page takes for granted that goes on where the first steps end, with a smaller model."""


@contextmanager
def world(folder, *, bert):
    """Put a folder `handbook` into a folder, serve the rest, and yield the environment of a process that finds it.

    Args:
        folder: Where the process will run.
        bert: The folder of a small SentenceTransformer, which the Hub has under the name of a larger one.
    """
    (folder / "handbook").mkdir()
    for document in et.load_sample(num_documents=5).documents:
        (folder / "handbook" / document.id).write_text(document.text, encoding="utf-8")
    model_repositories.gte_qwen2_repository(folder / "tiny" / "gte", max_position_embeddings=32768)
    model_repositories.jina_original_repository(folder / "tiny" / "jina")
    with llm_server.serving() as models, hub_server.serving() as (hub, endpoint):
        publish(hub, "Alibaba-NLP/gte-Qwen2-1.5B-instruct", folder / "tiny" / "gte")
        publish(hub, "jinaai/jina-embeddings-v3", folder / "tiny" / "jina")
        publish(hub, "BAAI/bge-base-en-v1.5", bert)
        publish(hub, "cross-encoder/ms-marco-MiniLM-L6-v2", bert)
        yield {
            **os.environ,
            "ANTHROPIC_BASE_URL": models.url,
            "ANTHROPIC_API_KEY": models.key,
            "OPENAI_BASE_URL": f"{models.url}/v1",
            "OPENAI_API_KEY": models.key,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
        }


def publish(hub, name, folder):
    """Put a folder on the Hub as a model."""
    repo = f"models/{name}"
    hub.create(repo, private=False)
    hub.num_commits += 1
    hub.heads[repo] = hub.revision
    hub.files[repo] = hub.history[repo, hub.revision] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
