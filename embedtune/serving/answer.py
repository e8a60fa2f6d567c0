"""Answers from retrieved chunks, with citations, or the statement that the documents do not contain the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from embedtune.bounds import whole
from embedtune.llms.retries import ask
from embedtune.llms.structured import object_in, schema_of
from embedtune.serving.passages import instructions, passages_in, request_with_passages
from embedtune.text import printable

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Completion, Request
    from embedtune.retrieval.hits import Hit
    from embedtune.retrieval.retriever import Retriever
    from embedtune.serving.feedback import FeedbackLog

logger: logging.Logger = logging.getLogger(__name__)

Outcome = Literal["answered", "not in the documents", "failed"]

SCHEMA = schema_of(
    {
        "outcome": {"type": "string", "enum": ["answered", "not in the documents"]},
        "answer": {"type": "string"},
        "passages": {"type": "array", "items": {"type": "integer"}},
    }
)

# Chunks are logged beyond those shown to the model, to distinguish near misses from misses.
LOGGED_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of `answer`, with everything that led to it.

    Attributes:
        question: The question.
        outcome: ``"answered"``; ``"not in the documents"``, according to the model; or ``"failed"``: the reply is not usable.
        text: The answer, or an empty string.
        cited: The ids of the chunks that the answer cites.
        hits: The chunks that the model was shown, best first.
        request: What the model was asked.
        completion: What it replied.
        problem: What is wrong with the reply (``"refused"``, ``"malformed"``, ``"cites no passage"``), or an empty string.
        number: Its number in the feedback log, if it was recorded.
        log_problem: Why it was not recorded, though there is a log, or an empty string.
    """

    question: str
    outcome: Outcome
    text: str
    cited: tuple[str, ...]
    hits: tuple[Hit, ...]
    request: Request
    completion: Completion
    problem: str = ""
    number: int | None = None
    log_problem: str = ""

    @property
    def citations(self) -> tuple[str, ...]:
        """Where each cited chunk begins, for a reader: ``"manual.pdf, page 3"``, or ``"pump.md, Restart"`` without pages."""
        by_id = {hit.id: hit for hit in self.hits}
        return tuple(_place(by_id[chunk]) for chunk in self.cited)

    def __repr__(self) -> str:
        said = self.text or f"({self.outcome}{': ' if self.problem else ''}{self.problem})"
        return printable("\n".join([said, *(f"  cites {chunk}" for chunk in self.cited)]))


def answer(question: str, retriever: Retriever, *, llm: LLM, k: int = 5, feedback: FeedbackLog | None = None) -> Answer:
    """Find the chunks for a question and let a language model answer from them.

    It runs three steps: ``retriever.search``, `build_request` and `ask_llm`. Passages are numbered
    and put in tags that no document can close. The model has no tools, so a malicious document can at most spoil the answers
    that use it.

    Args:
        question: The question.
        retriever: Finds the chunks.
        llm: An `AnthropicLLM`, `OpenAILLM`, `TransformersLLM`, or any object of the protocol `LLM`.
        k: How many chunks to show.
        feedback: The log in which the question and the hits are recorded. A log that cannot be written (a full disk, a
            ``redact`` that fails) costs no answer: ``log_problem`` says why, and so does a warning in Python's log.

    Raises:
        ValueError: If the question is empty, or ``k`` less than 1.
        TemporaryError: If the model cannot be reached after three attempts.
        RequestError: If it refuses the request.
        GenerationStoppedError: If no request can succeed: a wrong key, an empty account.

    Example:
        >>> import embedtune as et
        >>> from embedtune.llms import Completion, Price
        >>> class Scripted:  # any object with these members will do
        ...     name, price, max_tokens = "scripted", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body):
        ...         return {"said": '{"outcome": "answered", "answer": "Press both buttons.", "passages": [1]}'}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> chunks = [et.Chunk("a#0", "a", "Press both buttons to restart.", 0, 30), et.Chunk("b#0", "b", "Turn it.", 0, 8)]
        >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), chunks)
        >>> reply = et.answer("How do I restart it?", retriever, llm=Scripted())
        >>> reply.outcome, reply.text, reply.cited, reply.citations
        ('answered', 'Press both buttons.', ('a#0',), ('a',))
    """
    whole("k", k)
    found = retriever.search(question, k=max(k, LOGGED_DEPTH))
    request = build_request(question, found[:k])
    reply = ask_llm(request, llm, question=question, hits=found[:k])
    if feedback is None:
        return reply
    try:
        number = feedback.record(question, found, model=retriever.fingerprint, outcome=reply.outcome, cited=reply.cited)
    except Exception as err:  # whatever it is, the reply is paid for
        problem = f"{type(err).__name__}: {err}"
        logger.warning("An answer was not recorded in the feedback log. %s", problem)
        return replace(reply, log_problem=problem)
    return replace(reply, number=number)


def _place(hit: Hit) -> str:
    """Return the document of a hit, and the page or the heading under which it begins."""
    where = f"page {hit.page}" if hit.page else hit.headings[-1] if hit.headings else ""
    return ", ".join(filter(None, (hit.document_id or hit.id, where)))


def build_request(question: str, hits: Sequence[Hit]) -> Request:
    """Put the chunks that were found and the question into a request: the second step of `answer`."""
    return request_with_passages(instructions("answer"), question, hits, schema=SCHEMA)


def ask_llm(request: Request, llm: LLM, *, question: str, hits: Sequence[Hit]) -> Answer:
    """Let a language model reply to a request of `build_request`, and read its reply: the third step of `answer`."""
    completion = ask(llm, request)
    found = object_in(completion)
    outcome = found.get("outcome") if found else None
    text = found.get("answer") if found else None
    said, text = (outcome, text.strip()) if isinstance(text, str) else (None, "")
    if found is None or said not in ("answered", "not in the documents") or (said == "answered" and not text):
        return Answer(question, "failed", "", (), tuple(hits), request, completion, completion.problem or "malformed")
    if said == "not in the documents":
        return Answer(question, "not in the documents", "", (), tuple(hits), request, completion)
    named = passages_in(found, hits)
    if named is None:
        return Answer(question, "answered", text, (), tuple(hits), request, completion, "unreadable citations")
    cited, unknown = named
    problem = f"cites passage {unknown[0]}, which was not shown" if unknown else "" if cited else "cites no passage"
    return Answer(question, "answered", text, cited, tuple(hits), request, completion, problem)
