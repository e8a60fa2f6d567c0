"""How a request can fail, by what to do next. Any ``LLM`` may raise these in ``send``."""

from __future__ import annotations


class TemporaryError(Exception):
    """The request may work in a moment.

    Args:
        message: What happened, without text of documents.
        retry_after: How many seconds the provider asked to wait.
        maybe_paid: Whether the request may have been answered and billed although no usable reply arrived.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, maybe_paid: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.maybe_paid = maybe_paid


class BatchMissingError(TemporaryError):
    """The provider does not know a batch: it is too new, was deleted, or belongs to another account."""

    max_tries = 6


class RequestError(Exception):
    """This request will never work; others may."""


class GenerationStoppedError(RuntimeError):
    """No request will work until a person acts: a wrong key, an empty account, an unknown model."""
