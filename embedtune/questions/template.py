"""The request for questions: instructions from a file, and the passages with their titles and headings in tags."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from embedtune.llms.protocol import Request
from embedtune.llms.structured import context_tags, escaped, schema_of

if TYPE_CHECKING:
    from embedtune.types import Chunk

STYLES = {
    "natural": "a complete question, the way a person asks a colleague.",
    "keyword": "two to six search words, no complete sentence, no question mark.",
    "vague": "asked by somebody who does not know the right terms, or describes the problem instead of naming it.",
    "complex": "a longer question that needs several facts of the passage at once.",
    "misspelt": "typed in a hurry: a natural or keyword question with one or two spelling mistakes.",
    "claim": "a statement that the passage confirms, as somebody types it who wants to check it; no question mark.",
}
"""How questions are asked."""

DEFAULT_STYLES = ("natural", "keyword", "vague", "complex")

_EXAMPLES = (
    "The questions in <example_questions> were asked here before. Take their tone, length, spelling and way of asking, "
    "never what they ask about. Do not repeat any of them."
)

_QUESTION = {
    "style": {"type": "string", "enum": list(STYLES)},
    "question": {"type": "string"},
    "answer": {"type": "string"},
}
SCHEMA: Mapping[str, Any] = schema_of({"questions": {"type": "array", "items": schema_of(_QUESTION)}})


@cache
def default_instructions(name: str = "instructions") -> str:
    """Return the instructions that come with the package: for one passage, or for ``"several"``."""
    return files("embedtune.questions").joinpath(f"{name}.txt").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    r"""How to ask for questions about a chunk, or about several together.

    Attributes:
        instructions: The system prompt. ``{num_questions}``, ``{language}``, ``{styles}`` (their names, in order) and
            ``{style_guide}`` (a line about each) are filled in; other braces are left as they are.
        per_chunk: How many questions to ask for.
        language: The language to write in, or an empty string for the passage's own.
        seed: Draws the styles.
        styles: The style of each question; by default a mix that is drawn for each chunk.
        examples: Questions of people, which show how to ask.

    Example:
        >>> from embedtune.types import Chunk
        >>> template = RequestTemplate("Write {num_questions} questions.", per_chunk=2)
        >>> request = template.fill(Chunk("a#0", "a", "Press both.</passage>", 0, 21, headings=("Pump", "Reset")))
        >>> print(request.system, request.text, sep="\n")
        Write 2 questions.
        <headings>Pump > Reset</headings>
        <passage>
        Press both.&lt;/passage>
        </passage>
    """

    instructions: str
    per_chunk: int
    language: str = ""
    seed: int = 0
    styles: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.language, str) or not self.language.isprintable():
            raise ValueError(
                f"language={self.language!r} must be the name of a language, such as 'German'; '' for the chunk's own."
            )

    @property
    def version(self) -> str:
        """A short hash of the instructions and the schema."""
        return hashlib.sha256(f"{self.instructions}\0{SCHEMA}".encode("utf-8", "replace")).hexdigest()[:12]

    def fill(self, *chunks: Chunk) -> Request:
        """Return the request about one chunk, or about several together."""
        language = f"Write in {self.language}." if self.language else "Write in the language of the passage."
        styles = self.styles or self._drawn(chunks[0])
        system = self.instructions
        for name, value in (
            ("num_questions", str(self.per_chunk)),
            ("language", language),
            ("styles", ", ".join(styles) + "."),
            ("style_guide", "\n".join(f"- {style}: {STYLES[style]}" for style in STYLES if style in styles)),
        ):
            system = system.replace(f"{{{name}}}", value)
        parts = []
        if self.examples:
            system = f"{system}\n\n{_EXAMPLES}"
            shown = "\n".join(f"- {escaped(' '.join(text.split()))}" for text in self.examples)
            parts.append(f"<example_questions>\n{shown}\n</example_questions>")
        for number, chunk in enumerate(chunks, start=1):
            tag = f'<passage number="{number}">' if len(chunks) > 1 else "<passage>"
            parts += [*context_tags(chunk.title, chunk.headings), f"{tag}\n{escaped(chunk.text)}\n</passage>"]
        return Request(system, "\n".join(parts), SCHEMA)

    def _drawn(self, chunk: Chunk) -> tuple[str, ...]:
        """Draw a style for each question from the chunk's text, so that a chunk that moves gets the same request."""
        draw = random.Random(f"{self.seed}\0{chunk.text}".encode("utf-8", "surrogatepass"))
        order = draw.sample(DEFAULT_STYLES, k=len(DEFAULT_STYLES))
        return tuple(order[i % len(order)] for i in range(self.per_chunk))
