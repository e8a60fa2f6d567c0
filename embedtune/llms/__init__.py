"""Language models to ask, and the protocol to implement for another one."""

from embedtune.llms.protocol import LLM, Completion, Price, Request

__all__ = ["LLM", "Completion", "Price", "Request"]
