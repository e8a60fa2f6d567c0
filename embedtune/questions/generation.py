"""From chunks to questions, by a language model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.bounds import whole
from embedtune.llms.prices import Estimate, estimate
from embedtune.llms.protocol import LLM
from embedtune.questions.asking import TOKENS_PER_QUESTION, ask_about
from embedtune.questions.filters import MAX_CHARACTERS
from embedtune.questions.requests.replies import FOLDER
from embedtune.questions.template import STYLES, RequestTemplate, default_instructions
from embedtune.types import Chunk

if TYPE_CHECKING:
    from embedtune.questions.records import Questions
    from embedtune.questions.requests.dispatch import Mode

_NUM_SHOWN = 5  # examples in a request
_MAX_OF_STYLE = 20
_MAX_PER_CHUNK = 100


def generate_questions(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    per_chunk: int | None = None,
    styles: Mapping[str, int] | None = None,
    like: Iterable[Any] = (),
    output_dir: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    language: str = "",
    instructions: str | None = None,
    num_workers: int = 16,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model write questions that the chunks answer, and keep the good ones.

    Every reply is stored in ``output_dir`` before it is read. The same call again sends nothing and returns the same
    questions; after a crash, Ctrl-C or an error it continues where it stopped; a changed chunk, instruction or model
    sends only what changed.

    Args:
        chunks: What to ask about. Their texts, titles and headings are sent to the model.
        llm: The model: an `AnthropicLLM`, `OpenAILLM`, `TransformersLLM`, or any object of the protocol `LLM`.
        per_chunk: How many questions to ask for, by default 4; 3 to 5 is usual. More documents help more than more
            questions.
        styles: How many of each style, for instance ``{"natural": 2, "keyword": 1, "vague": 1}``, instead of
            ``per_chunk`` in a mix: ``"natural"``, ``"keyword"``, ``"vague"``, ``"complex"``, ``"misspelt"`` and
            ``"claim"``.
        like: Questions that people asked, as texts or records with a ``text`` (``log.questions()``). A few of them are
            shown to the model with each chunk, so that it asks as people do. A question that repeats one is dropped.
            With other examples all chunks are asked about again.
        output_dir: The folder of the ledger. It holds the replies of all models and their cost.
        mode: ``"batch"`` costs half and takes up to a day. The call waits until the batch has ended; it may be
            interrupted and run again.
        budget_usd: The most that everything in ``output_dir`` may ever cost. Requests beyond it are not sent, and counted;
            documents take turns, so that each gets some questions. A warning says beforehand if it will not suffice.
        language: The language to write in, for instance ``"German"``; by default that of each chunk.
        instructions: Your own instructions, see `RequestTemplate`; by default those of the package.
        num_workers: How many requests may run at once. A run starts with a quarter of them.
        seed: Draws the styles of questions, the examples that are shown, and the order of chunks.
        show_progress_bar: Whether to show progress and dollars; by default only in a terminal.

    Raises:
        ValueError: If there are no chunks, two have the same id, or an argument is out of its range.
        GenerationStoppedError: If no request can work: a wrong key, an empty account, an unknown model.
        RuntimeError: If another run uses the folder.
        OSError: If the ledger cannot be written.

    Example:
        >>> import tempfile
        >>> from embedtune.llms.protocol import Completion, Price
        >>> class Parrot:  # any object with these members will do
        ...     name, price, max_tokens = "parrot", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body): return {"said": "1. How do I restart the pump?"}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> chunk = Chunk("pump.md#0", "pump.md", "Press both buttons of the pump.", 0, 31)
        >>> questions = generate_questions([chunk], Parrot(), output_dir=tempfile.mkdtemp())
        >>> questions[0].id, questions[0].text
        ('pump.md#0/0', 'How do I restart the pump?')
    """
    check_chunks(chunks, llm)
    examples = _texts(like)
    template = _template(
        instructions, per_chunk=per_chunk, styles=styles, examples=_few(examples, seed), language=language, seed=seed
    )
    return ask_about(
        [(chunk,) for chunk in chunks],
        llm,
        template,
        examples=examples,
        output_dir=output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    )


def estimate_cost(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    per_chunk: int | None = None,
    styles: Mapping[str, int] | None = None,
    language: str = "",
    instructions: str | None = None,
) -> Estimate:
    """Estimate the tokens and dollars that `generate_questions` will take, without sending anything.

    Prices come from the installed version of genai-prices; ``price=`` of the model overrides them. Tokens are estimated
    from the number of characters: expect 30 percent more or less, and several times as many from a model that thinks
    before it answers.

    Args:
        chunks: What to ask about.
        llm: The model.
        per_chunk: How many questions to ask for.
        styles: How many of each style.
        language: The language to write in.
        instructions: Your own instructions.

    Example:
        >>> from embedtune.llms.anthropic import AnthropicLLM
        >>> chunk = Chunk("a#0", "a", "Press both buttons. " * 100, 0, 2000)
        >>> estimate_cost([chunk], AnthropicLLM("claude-sonnet-5-5")).num_requests
        1
    """
    check_chunks(chunks, llm)
    template = _template(instructions, per_chunk=per_chunk, styles=styles, examples=(), language=language, seed=0)
    distinct = {(request.system, request.text): request for request in map(template.fill, chunks)}
    return estimate(llm, distinct.values(), output_tokens=TOKENS_PER_QUESTION * template.per_chunk + 10)


def _template(
    instructions: str | None,
    *,
    per_chunk: int | None,
    styles: Mapping[str, int] | None,
    examples: tuple[str, ...],
    language: str,
    seed: int,
) -> RequestTemplate:
    if instructions is not None and not instructions.strip():
        raise ValueError("instructions is empty. Leave it out for the instructions of the package.")
    whole("seed", seed, at_least=0)
    quotas = _quotas(styles) if styles is not None else ()
    number = len(quotas) or 4 if per_chunk is None else per_chunk
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"per_chunk is {number!r}, a {type(number).__name__}. Pass a whole number.")
    if not 1 <= number <= _MAX_PER_CHUNK:
        raise ValueError(f"per_chunk is {number} and must be from 1 to {_MAX_PER_CHUNK}; 3 to 5 is usual.")
    if quotas and number != len(quotas):
        raise ValueError(f"per_chunk is {number}, but styles asks for {len(quotas)}. Leave out per_chunk.")
    return RequestTemplate(instructions or default_instructions(), number, language, seed, quotas, examples)


def _quotas(styles: Mapping[str, int]) -> tuple[str, ...]:
    """Return the style of each question to ask for."""
    if unknown := [style for style in styles if style not in STYLES]:
        raise ValueError(f"styles has {unknown[0]!r}. Choose among {', '.join(map(repr, STYLES))}.")
    for style, number in styles.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MAX_OF_STYLE:
            raise ValueError(f"styles[{style!r}] is {number!r} and must be a whole number from 0 to {_MAX_OF_STYLE}.")
    if not any(styles.values()):
        raise ValueError(f"styles={dict(styles)!r} asks for no question. Ask for at least one.")
    return tuple(style for style, number in styles.items() for _ in range(number))


def _texts(like: Iterable[Any]) -> list[str]:
    """Return the texts of questions."""
    if isinstance(like, str):
        raise TypeError(f"like is the str {like[:60]!r}. Pass a list of questions.")
    texts = [one if isinstance(one, str) else getattr(one, "text", None) for one in like]
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise TypeError(f"like[{position}] has no text. Pass questions, or records with a text.")
    return [str(text) for text in texts]


def _few(texts: Sequence[str], seed: int) -> tuple[str, ...]:
    """Choose the examples to show: by a hash, so that few change when a log grows."""
    short = {" ".join(text.split()) for text in texts if len(text) <= MAX_CHARACTERS}
    digests = {text: hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "replace")).digest() for text in short}
    return tuple(sorted(short, key=lambda text: (digests[text], text))[:_NUM_SHOWN])


def check_chunks(chunks: Sequence[Chunk], llm: LLM) -> None:
    """Raise unless there are chunks with different ids, and a language model."""
    if not isinstance(llm, LLM):
        raise TypeError(
            f"llm is a {type(llm).__name__}. Pass AnthropicLLM(...), OpenAILLM(...), TransformersLLM(...) or an object "
            f"with the members of the protocol LLM."
        )
    if not chunks:
        raise ValueError("there are no chunks to ask about. Create some with chunk_documents().")
    seen: set[str] = set()
    for position, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunks[{position}] is a {type(chunk).__name__}, not a Chunk. Use chunk_documents().")
        if chunk.id in seen:
            raise ValueError(f"two chunks have the id {chunk.id!r}. Ids must be unique.")
        seen.add(chunk.id)
