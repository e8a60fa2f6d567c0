"""The request for questions: instructions from a file, and one passage with its title and headings in tags."""

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

STYLES = ("natural", "keyword", "imprecise", "complex")

_QUESTION = {
    "style": {"type": "string", "enum": list(STYLES)},
    "question": {"type": "string"},
    "answer": {"type": "string"},
}
SCHEMA: Mapping[str, Any] = schema_of({"questions": {"type": "array", "items": schema_of(_QUESTION)}})


@cache
def default_instructions() -> str:
    """Return the instructions that come with the package."""
    return files("embedtune.questions").joinpath("instructions.txt").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    r"""How to ask for questions about a chunk.

    Attributes:
        instructions: The system prompt. ``{num_questions}``, ``{language}`` and ``{styles}`` are filled in; other braces
            are left as they are.
        per_chunk: How many questions to ask for.
        language: The language to write in, or an empty string for the passage's own.
        seed: Draws the styles.

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

    @property
    def version(self) -> str:
        """A short hash of the instructions and the schema."""
        return hashlib.sha256(f"{self.instructions}\0{SCHEMA}".encode("utf-8", "replace")).hexdigest()[:12]

    def fill(self, chunk: Chunk) -> Request:
        """Return the request about one chunk."""
        language = f"Write in {self.language}." if self.language else "Write in the language of the passage."
        system = self.instructions
        for name, value in (
            ("num_questions", str(self.per_chunk)),
            ("language", language),
            ("styles", ", ".join(self._styles(chunk)) + "."),
        ):
            system = system.replace(f"{{{name}}}", value)
        parts = [*context_tags(chunk.title, chunk.headings), f"<passage>\n{escaped(chunk.text)}\n</passage>"]
        return Request(system, "\n".join(parts), SCHEMA)

    def _styles(self, chunk: Chunk) -> list[str]:
        """Draw a style for each question from the chunk's text, so that a chunk that moves gets the same request."""
        draw = random.Random(f"{self.seed}\0{chunk.text}".encode("utf-8", "surrogatepass"))
        order = draw.sample(STYLES, k=len(STYLES))
        return [order[i % len(order)] for i in range(self.per_chunk)]
