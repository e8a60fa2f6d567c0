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

    def request(self, prompt):
        return {"system": prompt.system, "text": prompt.text, "schema": prompt.schema}

    def send(self, request):
        self.requests.append(request)
        if self.failures:
            self.failures -= 1
            raise TemporaryError("busy", retry_after=0)
        said = self.reply(request["text"])
        return {"text": said if isinstance(said, str) else json.dumps(said)}

    def read(self, reply):
        return Completion(reply["text"], problem=self.problem)
