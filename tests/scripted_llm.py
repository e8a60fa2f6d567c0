"""A language model whose replies a function writes, and which remembers what it was asked."""

from __future__ import annotations

import json

from embedtune.llms.errors import TemporaryError
from embedtune.llms.protocol import Completion, Price


class ScriptedLLM:
    """Replies with what ``reply(prompt_text)`` returns, as JSON unless it is a string; fails the first ``failures`` times."""

    name, price, max_tokens = "scripted", Price(0, 0), 100

    def __init__(self, reply, *, failures=0, problem=""):
        self.reply, self.failures, self.problem = reply, failures, problem
        self.requests = []

    def prepare(self):
        pass

    def body(self, request):
        return {"system": request.system, "text": request.text, "schema": request.schema}

    def send(self, body):
        self.requests.append(body)
        if self.failures:
            self.failures -= 1
            raise TemporaryError("busy", retry_after=0)
        said = self.reply(body["text"])
        return {"text": said if isinstance(said, str) else json.dumps(said)}

    def read(self, reply):
        return Completion(reply["text"], problem=self.problem)
