"""The APIs of Anthropic and OpenAI on loopback, strict about what the real ones refuse.

A reply is a function of its request alone. Faults are queued for a route, or bound to a text in the request.

    with serving() as server:
        client = anthropic.Anthropic(api_key=server.key, base_url=server.url)
        server.queue("messages", Fault(status=529), times=2)

As a program it prints its address and serves until its standard input is closed: python tests/llm_server.py --seconds 0.05
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-ant-secret-0123456789"
PRICES = {"claude-haiku-5-5": (0.1, 0.5), "claude-sonnet-5-5": (2.0, 10.0), "claude-opus-5-5": (4.0, 20.0)}
CACHE_WRITE, CACHE_READ = 1.25, {"claude-haiku-5-5": 0.1, "claude-sonnet-5-5": 0.05, "claude-opus-5-5": 0.05}
TOKENS = 1.35  # what the tokenizer of current models counts where older ones count one
RETIRED = {"claude-3-sonnet-20240229", "claude-sonnet-4-6"}
OPENAI_MODELS = {"gpt-test"}
DIMENSIONS = {
    "text-embedding-3-large": 64,
    "text-embedding-3-small": 32,
    "text-embedding-ada-002": 16,
}  # of real models, a few
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
ALLOWED = {"model", "max_tokens", "messages", "system", "output_config", "metadata", "stop_sequences", "thinking"}
UNSUPPORTED_IN_SCHEMAS = {"maxItems", "minLength", "maxLength", "minimum", "maximum", "multipleOf", "pattern"}
LIMIT_IN_BATCH = 100_000


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 200
    message: str = "something is wrong"
    code: str = ""  # details.error_code
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent as it is
    drop: bool = False  # the work is done and billed, the reply is lost
    truncate: bool = False  # half of the reply
    seconds: float = 0.0  # slow
    stop_reason: str = ""
    text: str | None = None  # what the model says


@dataclass
class Batch:
    id: str
    created: float
    requests: list[dict[str, Any]]
    ready: float
    deleted: bool = False


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class LLMServer:
    """What the server knows, and what it was asked."""

    def __init__(self, *, seconds: float = 0.0, batch_seconds: float = 0.0) -> None:
        self.key = KEY
        self.url = ""
        self.seconds = seconds
        self.batch_seconds = batch_seconds
        self.lock = threading.Lock()
        self.log: list[dict[str, Any]] = []
        self.queued: dict[str, deque[Fault]] = defaultdict(deque)
        self.by_text: list[tuple[str, Fault]] = []
        self.answered: list[str] = []  # the texts that were answered, and so paid for
        self.microdollars = 0.0
        self.cached: set[str] = set()
        self.in_flight = self.max_in_flight = 0
        self.batches: list[Batch] = []
        self.batch_outcome: Callable[[dict[str, Any]], str] = lambda request: "succeeded"
        self.extra_results: list[dict[str, Any]] = []
        self.cut_results_after: deque[int] = deque()
        self.clients: list[Any] = []  # closed with the server

    def anthropic_client(self):
        import anthropic

        self.clients.append(anthropic.Anthropic(api_key=self.key, base_url=self.url))
        return self.clients[-1]

    def openai_client(self):
        import openai

        self.clients.append(openai.OpenAI(api_key=self.key, base_url=f"{self.url}/v1"))
        return self.clients[-1]

    def queue(self, route: str, fault: Fault, *, times: int = 1) -> None:
        self.queued[route].extend([fault] * times)

    def on_text(self, text: str, fault: Fault) -> None:
        self.by_text.append((text, fault))

    def num_requests(self, route: str) -> int:
        return sum(entry["route"] == route for entry in self.log)

    def fault_for(self, route: str, body: dict[str, Any]) -> Fault:
        with self.lock:
            if self.queued[route]:
                return self.queued[route].popleft()
        return self.fault_of_text(body)

    def fault_of_text(self, body: dict[str, Any]) -> Fault:
        said = json.dumps(body, ensure_ascii=False)
        return next((fault for text, fault in self.by_text if text in said), Fault())

    def answer(self, params: dict[str, Any], fault: Fault, *, share: float = 1.0) -> dict[str, Any]:
        """Make the message for a request, and bill it."""
        shared, user = material(params)
        text = (
            fault.text
            if fault.text is not None
            else written(params["system"], user, json.dumps(params.get("output_config")))
        )
        said = params["system"] + user[len(shared) :] + json.dumps(params["output_config"])
        with self.lock:
            is_cached = shared in self.cached
            self.cached.add(shared)
        usage = {
            "input_tokens": int(TOKENS * num_tokens(said)),
            "cache_creation_input_tokens": 0 if is_cached else int(TOKENS * num_tokens(shared)),
            "cache_read_input_tokens": int(TOKENS * num_tokens(shared)) if is_cached else 0,
            "output_tokens": min(int(TOKENS * num_tokens(text)), params["max_tokens"]),
        }
        prices = PRICES[params["model"]]
        with self.lock:
            self.answered.append(user)
            num_read = usage["input_tokens"] + CACHE_WRITE * usage["cache_creation_input_tokens"]
            num_read += CACHE_READ[params["model"]] * usage["cache_read_input_tokens"]
            self.microdollars += share * (num_read * prices[0] + usage["output_tokens"] * prices[1])
        digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
        return {
            "id": f"msg_{digest[:20]}",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": [
                {"type": "thinking", "thinking": "", "signature": "c2ln"},
                {"type": "text", "text": text},
            ],
            "stop_reason": fault.stop_reason or "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }


def material(params: dict[str, Any]) -> tuple[str, str]:
    """Return the part of the user's message that is to be cached, and the whole message."""
    content = params["messages"][0]["content"]
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return "".join(b["text"] for b in blocks if "cache_control" in b), "".join(b["text"] for b in blocks)


def num_tokens(text: str) -> int:
    """One token for each four characters of a word, and one for each mark."""
    return sum(-(-len(piece) // 5) for piece in re.findall(r"\w+|[^\w\s]", text))


def written(system: str, user: str, schema: str = "") -> str:
    """Write questions about the passage, as many and in the styles that the instructions ask for."""
    if "description" in schema:
        words = re.findall(r"\w+", user.rpartition("<passage>")[2])
        return json.dumps({"description": f"About {' '.join(words[:5])}."})
    if "grade" in schema:
        numbers = re.findall(r'<passage number="(\d+)">', user)
        return json.dumps({"grades": [{"number": int(number), "grade": i % 4} for i, number in enumerate(numbers)]})
    passage = user.partition("<passage>")[2].rpartition("</passage>")[0]
    found = re.search(r"Write (\d+) questions", system)
    styles = re.search(r"in this order: ([\w, ]+)", system)
    names = styles[1].split(", ") if styles else ["natural"]
    words = re.findall(r"[^\W\d_]{3,}", passage) or ["nothing"]
    draw = random.Random(passage.encode("utf-8", "surrogatepass"))
    questions = []
    for i in range(int(found[1]) if found else 3):
        start = draw.randrange(len(words))
        some = (words * 9)[start : start + 9]
        questions.append(
            {
                "style": names[i % len(names)],
                "question": f"{['How', 'When', 'Why', 'Where'][i % 4]} should {' '.join(some)} be done?",
                "answer": " ".join((words * 16)[start : start + 16]),
            }
        )
    return json.dumps({"questions": questions}, ensure_ascii=False)


def check_message(params: dict[str, Any]) -> None:
    """Refuse what the real API refuses."""
    if unknown := params.keys() - ALLOWED:
        raise Refusal(400, f"{min(unknown)}: Extra inputs are not permitted")
    if params.get("model") in RETIRED or params.get("model") not in PRICES:
        raise Refusal(404, f"model: {params.get('model')}")
    if not isinstance(params.get("max_tokens"), int) or params["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: Field required")
    messages = params.get("messages") or [{}]
    if messages[-1].get("role") != "user":
        raise Refusal(400, "This model does not support assistant message prefill.")
    if not messages[-1].get("content"):
        raise Refusal(400, "messages: text content blocks must be non-empty")
    output = params.get("output_config", {})
    if output.get("effort", "low") not in {"low", "medium", "high", "xhigh", "max"}:
        raise Refusal(400, "output_config.effort: invalid")
    if "format" in output:
        check_schema(output["format"]["schema"])


def check_schema(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            check_schema(part)
    if not isinstance(schema, dict):
        return
    if bad := UNSUPPORTED_IN_SCHEMAS & schema.keys():
        raise Refusal(400, f"output_config.format.schema: {min(bad)} is not supported")
    if schema.get("minItems", 0) not in (0, 1):
        raise Refusal(400, "output_config.format.schema: minItems other than 0 or 1 is not supported")
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise Refusal(400, "output_config.format.schema: additionalProperties must be false")
    for value in schema.values():
        check_schema(value)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: LLMServer

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.handle_one("POST")

    def do_GET(self):
        self.handle_one("GET")

    def do_DELETE(self):
        self.handle_one("DELETE")

    def handle_one(self, method):
        state = self.server_state
        path, _, query = self.path.partition("?")
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with state.lock:
            state.in_flight += 1
            state.max_in_flight = max(state.max_in_flight, state.in_flight)
        try:
            self.answer(method, path, query, raw)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with state.lock:
                state.in_flight -= 1

    def answer(self, method, path, query, raw):
        state = self.server_state
        route, argument = self.route(method, path)
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            return self.error(Refusal(400, "The request body is not valid JSON"))
        entry = {"route": route, "headers": dict(self.headers), "body": body, "time": time.monotonic(), "path": path}
        with state.lock:
            state.log.append(entry)
        fault = state.fault_for(route, body)
        time.sleep(fault.seconds or (state.seconds if route in {"messages", "chat"} else 0))
        try:
            self.check_headers()
            if fault.status >= 400:
                raise Refusal(fault.status, fault.message, fault.code)
            content = getattr(self, route)(body, argument, query, fault)
        except Refusal as refusal:
            return self.error(refusal, fault.headers)
        if content is None:
            return None
        if fault.body is not None:
            return self.send(fault.body, kind="text/html")
        return self.send(json.dumps(content).encode(), fault=fault)

    def route(self, method, path):
        if path == "/v1/models":
            return "models_list", ""
        for pattern, route in (
            (r"POST /v1/messages()", "messages"),
            (r"POST /v1/messages/count_tokens()", "count_tokens"),
            (r"POST /v1/messages/batches()", "batches_create"),
            (r"GET /v1/messages/batches()", "batches_list"),
            (r"GET /v1/messages/batches/([^/]+)/results", "batches_results"),
            (r"GET /v1/messages/batches/([^/]+)", "batches_retrieve"),
            (r"DELETE /v1/messages/batches/([^/]+)", "batches_delete"),
            (r"GET /v1/models/([^/]+)", "models"),
            (r"POST /v1/chat/completions()", "chat"),
            (r"POST /v1/embeddings()", "embeddings"),
        ):
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return route, match[1]
        return "missing", path

    def check_headers(self):
        key = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key")
        if key != self.server_state.key:
            raise Refusal(401, "invalid bearer token")
        is_openai = self.path.startswith(("/v1/chat", "/v1/embeddings", "/v1/models"))
        if not is_openai and not self.headers.get("anthropic-version"):
            raise Refusal(400, "anthropic-version: header is required")

    def error(self, refusal, headers=None):
        error: dict[str, Any] = {
            "type": ERROR_TYPES.get(refusal.status, "api_error"),
            "message": refusal.message,
            "code": refusal.code or None,
        }
        if refusal.code:
            error["details"] = {"error_code": refusal.code}
        content = json.dumps({"type": "error", "error": error}).encode()
        self.send(content, status=refusal.status, headers=headers)

    def send(self, content, *, status=200, kind="application/json", headers=None, fault=None):
        if fault is not None and fault.drop:
            self.close_connection = True
            return
        lines = {"Content-Type": kind, "Content-Length": str(len(content)), "request-id": "req_1", **(headers or {})}
        head = f"HTTP/1.1 {status} -\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        if fault is not None and fault.truncate:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(head.encode() + content)  # one write: two would wait for each other on loopback

    # Anthropic

    def messages(self, body, argument, query, fault):
        check_message(body)
        return self.server_state.answer(body, fault)

    def count_tokens(self, body, argument, query, fault):
        return {"input_tokens": num_tokens(json.dumps(body))}

    def models(self, body, argument, query, fault):
        if self.headers.get("anthropic-version") is None:
            if argument not in OPENAI_MODELS:
                raise Refusal(404, f"The model `{argument}` does not exist", "model_not_found")
            return {"id": argument, "object": "model", "created": 0, "owned_by": "test"}
        if argument not in PRICES and argument not in RETIRED:
            raise Refusal(404, f"model: {argument}")
        return {
            "type": "model",
            "id": argument,
            "display_name": argument,
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "retired" if argument in RETIRED else "active",
        }

    def models_list(self, body, argument, query, fault):
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in sorted(OPENAI_MODELS)]
        return {"object": "list", "data": rows, "has_more": False}

    def batches_create(self, body, argument, query, fault):
        requests = body["requests"]
        ids = [request["custom_id"] for request in requests]
        if not 1 <= len(ids) <= LIMIT_IN_BATCH:
            raise Refusal(400, f"requests: between 1 and {LIMIT_IN_BATCH} are allowed")
        if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids):
            raise Refusal(400, "requests: custom_id must be unique and match ^[a-zA-Z0-9_-]{1,64}$")
        state = self.server_state
        with state.lock:
            now = time.time()
            batch = Batch(f"msgbatch_{len(state.batches):04}", now, requests, now + state.batch_seconds)
            state.batches.append(batch)
        for request in requests:
            if state.batch_outcome(request) == "succeeded":
                request["message"] = state.answer(request["params"], state.fault_of_text(request["params"]), share=0.5)
        return self.batch_row(batch)

    def batch_row(self, batch):
        ended = time.time() >= batch.ready
        outcomes = [self.server_state.batch_outcome(request) for request in batch.requests]
        counts = {
            name: outcomes.count(name) if ended else 0 for name in ("succeeded", "errored", "canceled", "expired")
        }
        moment = datetime.fromtimestamp(batch.created, timezone.utc).isoformat()
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "processing": 0 if ended else len(outcomes)},
            "created_at": moment,
            "expires_at": moment,
            "ended_at": moment if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.server_state.url}/v1/messages/batches/{batch.id}/results" if ended else None,
        }

    def find_batch(self, name):
        for batch in self.server_state.batches:
            if batch.id == name and not batch.deleted:
                return batch
        raise Refusal(404, f"batch {name} not found")

    def batches_retrieve(self, body, argument, query, fault):
        return self.batch_row(self.find_batch(argument))

    def batches_delete(self, body, argument, query, fault):
        self.find_batch(argument).deleted = True
        return {"id": argument, "type": "message_batch_deleted"}

    def batches_list(self, body, argument, query, fault):
        """Newest first, three to a page, so that paging is put to the test."""
        rows = [self.batch_row(batch) for batch in reversed(self.server_state.batches) if not batch.deleted]
        if after := re.search(r"after_id=(\w+)", query):
            names = [row["id"] for row in rows]
            rows = rows[names.index(after[1]) + 1 :]
        page = rows[:3]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"data": page, "has_more": len(rows) > 3, **ends}

    def batches_results(self, body, argument, query, fault):
        state = self.server_state
        batch = self.find_batch(argument)
        if time.time() < batch.ready:
            raise Refusal(400, "the batch has not ended")
        lines = [json.dumps(self.result(request)) for request in batch.requests]
        lines += [json.dumps(line) for line in state.extra_results]
        random.Random(argument).shuffle(lines)
        content = "".join(line + "\n" for line in lines).encode()
        if state.cut_results_after:
            kept = sum(len(line.encode()) + 1 for line in lines[: state.cut_results_after.popleft()]) + 40
            head = f"HTTP/1.1 200 -\r\nContent-Type: application/x-jsonl\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content[:kept])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send(content, kind="application/x-jsonl")

    def result(self, request):
        outcome = self.server_state.batch_outcome(request)
        row = {"type": outcome}
        if outcome == "succeeded":
            row["message"] = request["message"]
        if outcome == "errored":
            row["error"] = {"type": "error", "error": {"type": "invalid_request_error", "message": "bad request"}}
        return {"custom_id": request["custom_id"], "result": row}

    # OpenAI

    def chat(self, body, argument, query, fault):
        if body.get("model") not in OPENAI_MODELS:
            raise Refusal(404, f"The model `{body.get('model')}` does not exist", "model_not_found")
        if "max_tokens" in body and "max_completion_tokens" in body:
            raise Refusal(400, "max_tokens and max_completion_tokens are mutually exclusive")
        if not body["response_format"]["json_schema"]["schema"]:
            raise Refusal(400, "response_format: schema is missing")
        system, user = (message["content"] for message in body["messages"])
        text = fault.text if fault.text is not None else written(system, user)
        self.server_state.answered.append(user)
        is_refused = fault.stop_reason == "refusal"
        message = {
            "role": "assistant",
            "content": None if is_refused else text,
            "refusal": "no" if is_refused else None,
        }
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": fault.stop_reason or "stop"}],
            "usage": {
                "prompt_tokens": num_tokens(system + user),
                "completion_tokens": num_tokens(text),
                "total_tokens": num_tokens(system + user + text),
            },
        }

    def embeddings(self, body, argument, query, fault):
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        model, dimensions = body.get("model"), body.get("dimensions")
        if model not in DIMENSIONS:
            raise Refusal(404, f"The model `{model}` does not exist", "model_not_found")
        if unknown := body.keys() - {"model", "input", "dimensions", "encoding_format", "user"}:
            raise Refusal(400, f"Unrecognized request argument supplied: {min(unknown)}")
        if dimensions is not None and (model == "text-embedding-ada-002" or not 1 <= dimensions <= DIMENSIONS[model]):
            raise Refusal(400, "This model does not support specifying dimensions.")
        if not texts or len(texts) > 2048 or not all(isinstance(text, str) and text for text in texts):
            raise Refusal(400, "'$.input' is invalid: 1 to 2048 strings, none of them empty")
        sizes = [num_tokens(text) for text in texts]
        if max(sizes) > 8192:
            raise Refusal(400, f"Invalid 'input[{sizes.index(max(sizes))}]': maximum input length is 8192 tokens.")
        if sum(sizes) > 300_000:
            raise Refusal(
                400, f"Requested {sum(sizes)} tokens, max 300000 tokens per request", "max_tokens_per_request"
            )
        with self.server_state.lock:
            self.server_state.answered.extend(texts)
            self.server_state.microdollars += 0.13 * sum(sizes)
        rows = []
        for i, text in enumerate(texts):
            vector = embedding_of(text, dimensions or DIMENSIONS[model])
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            encoded = packed if body.get("encoding_format") == "base64" else vector
            rows.append({"object": "embedding", "index": i, "embedding": encoded})
        random.Random(len(texts)).shuffle(rows)  # each says where it belongs
        usage = {"prompt_tokens": sum(sizes), "total_tokens": sum(sizes)}
        return {"object": "list", "data": rows, "model": body["model"], "usage": usage}

    def missing(self, body, argument, query, fault):
        raise Refusal(404, f"no such route: {argument}")


def embedding_of(text, dimensions):
    """The vector of a text: of unit length, and nothing but a function of its characters."""
    draw = random.Random(text.encode("utf-8", "surrogatepass"))
    vector = [draw.gauss(0, 1) for _ in range(dimensions)]
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector]


def make_chunks(number, *, words=60):
    """Chunks of some text each, five to a document, no two alike."""
    from embedtune.types import Chunk

    chunks = []
    for i in range(number):
        draw = random.Random(i)
        text = " ".join("".join(draw.choices("aeiounrstlmdk", k=draw.randrange(3, 9))) for _ in range(words))
        document = f"doc{i // 5}.md"
        start = 100_000 * i
        chunks.append(
            Chunk(f"{document}#{i % 5}", document, text, start, start + len(text), headings=("Guide",), title="Manual")
        )
    return chunks


def clean_environment(monkeypatch, folder):
    """See to it that no test finds a real key."""
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "OPENAI_")):
            monkeypatch.delenv(name)
    (folder / "no-config").mkdir()
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(folder / "no-config"))


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that was killed


@contextmanager
def serving(**settings):
    """Yield a running `LLMServer`."""
    state = LLMServer(**settings)
    server = _QuietServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"server_state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        for client in state.clients:
            client.close()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0)
    with serving(seconds=parser.parse_args().seconds) as running:
        print(running.url, flush=True)  # noqa: T201
        sys.stdin.read()
