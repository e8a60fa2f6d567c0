"""Griffe knows the heading ``Examples:`` alone; under ``Example:`` it would take the prompts ``>>>`` for Markdown's quotes."""

import griffe


class Example(griffe.Extension):
    """Renders an ``Example:`` as code."""

    def on_object(self, *, obj: griffe.Object, **options: object) -> None:  # noqa: ARG002 - griffe passes more
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
