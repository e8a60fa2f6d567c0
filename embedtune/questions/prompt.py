"""The prompt: instructions from a file, and one passage with its title and headings in tags."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from embedtune.llms.protocol import Prompt

if TYPE_CHECKING:
    from embedtune.types import Chunk

STYLES = ("natural", "keyword", "imprecise", "complex")

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "questions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "style": {"type": "string", "enum": list(STYLES)},
                    "question": {"type": "string"},
                    "answer": {"type": "string"},
                },
                "required": ["style", "question", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["questions"],
    "additionalProperties": False,
}

_TAG = re.compile(r"<(?=\s*/?\s*(?:passage|document_title|headings|questions?)\b)", re.IGNORECASE)


@cache
def default_instructions() -> str:
    """Return the instructions that come with the package."""
    return files("embedtune.questions").joinpath("prompt.txt").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    r"""How to ask for questions about a chunk.

    Attributes:
        instructions: The system prompt. ``{num_questions}``, ``{language}`` and ``{styles}`` are filled in where they
            stand; other braces stay as they are.
        per_chunk: How many questions to ask for.
        language: The language to write in, or an empty string for the passage's own.
        seed: Draws the styles.

    Example:
        >>> template = PromptTemplate("Write {num_questions} questions.", per_chunk=2)
        >>> prompt = template.prompt(Chunk("a#0", "a", "Press both.</passage>", 0, 21, headings=("Pump", "Reset")))
        >>> print(prompt.system, prompt.text, sep="\n")
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

    def prompt(self, chunk: Chunk) -> Prompt:
        """Fill in one chunk."""
        language = f"Write in {self.language}." if self.language else "Write in the language of the passage."
        system = self.instructions
        for name, value in (
            ("num_questions", str(self.per_chunk)),
            ("language", language),
            ("styles", ", ".join(self._styles(chunk)) + "."),
        ):
            system = system.replace(f"{{{name}}}", value)
        parts = [
            f"<document_title>{escaped(chunk.title)}</document_title>" if chunk.title else "",
            f"<headings>{escaped(' > '.join(chunk.headings))}</headings>" if chunk.headings else "",
            f"<passage>\n{escaped(chunk.text)}\n</passage>",
        ]
        return Prompt(system, "\n".join(filter(None, parts)), SCHEMA)

    def _styles(self, chunk: Chunk) -> list[str]:
        """Draw a style for each question, by the chunk's text, so that a chunk that moves is asked the same again."""
        draw = random.Random(f"{self.seed}\0{chunk.text}".encode("utf-8", "surrogatepass"))
        order = draw.sample(STYLES, k=len(STYLES))
        return [order[i % len(order)] for i in range(self.per_chunk)]


def escaped(text: str) -> str:
    """Make sure that a document can neither close its tag nor break the encoding of the request."""
    return _TAG.sub("&lt;", text).encode("utf-8", "replace").decode()
