"""Serve answers from the sample handbook, log what was missed, learn from it, and find out whether that helped.

    python examples/continuous_improvement.py

Half of the handbook's documents are "new": nobody has made training questions about them, and employees ask about them. With
a key in ANTHROPIC_API_KEY, Claude answers from the chunks that are found, and judges which chunk should have been. Without
one, a script takes its place: it looks up the answers that come with the sample. Everything else is real. Some minutes on two
CPU cores.
"""

import argparse
import json
import os
import re

import embedtune as et
from embedtune.improvement.rounds import Round
from embedtune.llms import LLM, Completion, Price


class ScriptedLLM:
    """Not a language model: knows which chunks answer the sample's questions, and cites those that it is shown."""

    name, price, max_tokens = "script", Price(0, 0), 0

    def __init__(self, answers: dict[str, list[str]]):
        self.answers = answers  # the texts of the relevant chunks, by the question's text

    def prepare(self):
        pass

    def body(self, request):
        return {"text": request.text, "judges": "outcome" not in request.schema["properties"]}

    def send(self, body):
        question = re.search(r"<question>\n(.*)\n</question>", body["text"], re.DOTALL).group(1)
        passages = re.findall(r'<passage number="(\d+)">\n(.*?)\n</passage>', body["text"], re.DOTALL)
        relevant = [int(n) for n, text in passages if any(text.endswith(chunk) for chunk in self.answers[question])]
        if body["judges"]:
            return {"passages": relevant}
        if not relevant:
            return {"outcome": "not in the documents", "answer": "", "passages": []}
        return {"outcome": "answered", "answer": "See there.", "passages": relevant[:1]}

    def read(self, reply):
        return Completion(json.dumps(reply))


def choose_llm(questions: list[et.Question], chunks: list[et.Chunk]) -> LLM:
    if os.environ.get("ANTHROPIC_API_KEY"):
        return et.AnthropicLLM("claude-haiku-5-5")
    text_of = {chunk.id: chunk.text for chunk in chunks}
    print("No ANTHROPIC_API_KEY: a script that knows the sample's answers replaces the language model.\n")
    return ScriptedLLM({q.text: [text_of[chunk_id] for chunk_id in q.chunk_ids] for q in questions})


def main(
    output: str = "out/continuous-improvement",
    *,
    documents: int | None = None,
    model_name: str = "minilm",
    llm: LLM | None = None,
    epochs: float = 2,
    learning_rate: float = 5e-5,
) -> Round:
    # 1. What there is: chunks, questions about half of the documents, and a model
    model = et.load_model(model_name)
    sample = et.load_sample(num_documents=documents)
    chunks = et.chunk_documents(sample.documents, max_tokens=250, tokenizer=model)
    questions = sample.questions_for(chunks)
    new = {document.id for document in sample.documents[::2]}
    known = [q for q in questions if q.chunk_ids[0].partition("#")[0] not in new]
    data = et.build_dataset(chunks, known, test_size=0.4, dev_size=0.1, seed=0)
    print(data, "\n")
    llm = llm or choose_llm(questions, chunks)

    # 2. Serve, and log: search and answer in one call. People who were helped say so now and then.
    index, log = f"{output}/retriever", et.FeedbackLog(f"{output}/feedback.sqlite")
    retriever = et.Retriever.from_dataset(model, data, words=et.learn_words(data, model))
    retriever.save(index)
    asked = [q for q in questions if q.chunk_ids[0].partition("#")[0] in new]
    for number, question in enumerate(asked):
        reply = et.answer(question.text, retriever, llm=llm, k=3, feedback=log)
        if reply.outcome == "answered" and number % 2:
            log.rate(reply.number, thumbs_up=True)
    misses = log.misses()
    print(f"{len(log)} questions were asked, {len(misses)} missed. The first of them:\n")
    for miss in misses[:3]:
        print(f"  {miss.text}")

    # 3. Which chunk should have been found? A deeper search proposes, the language model decides.
    num_found = et.label_misses(log, retriever, llm=llm, output_dir=f"{output}/ledger")
    print(f"\nFor {num_found} of them a chunk was found that answers it. What that looks like:\n")
    print(et.suggest_chunk(misses[0].text, retriever, llm=llm, k=3), "\n")

    # 4. Learn from it, and let the new model serve only if it is better where it should be and worse nowhere
    args = et.TuningArguments("unused", num_train_epochs=epochs, learning_rate=learning_rate, dropout=0.0)
    round_ = et.improve(retriever, data, feedback=log, output_dir=f"{output}/rounds", args=args)
    print(f"\n{round_}\n")

    # 5. A new model needs a new index; the old retriever answers until the new one is complete
    if round_.accepted:
        retriever = et.reindex(retriever, round_.model_path, path=index)
    retriever = et.Retriever.load(index)  # model, words and chunks: refused if they did not belong together
    print(f"The model of round {et.Rounds(f'{output}/rounds').current.number} serves from {index}")
    print(f"{misses[0].text}\n  -> {retriever.search(misses[0].text, k=1)[0].id}")
    return round_


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/continuous-improvement", help="where retriever, log and rounds go")
    parser.add_argument("--documents", type=int, help="use only the first documents of the sample")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--epochs", type=float, default=2, help="how often to go through the pairs of a round")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    main(**vars(parser.parse_args()))
