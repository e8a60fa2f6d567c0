"""A chat model on this machine, for documents that may not leave it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

from embedtune.bounds import whole
from embedtune.llms.protocol import Completion, Price, Request


@dataclass(frozen=True)
class TransformersLLM:
    """Any causal language model of transformers, run locally on groups of requests.

    It decodes greedily. The JSON schema is only part of the instructions, so small models write malformed replies now and
    then; ``print(questions)`` counts them.

    Attributes:
        model: A model's name on the Hub, a folder, or a loaded model.
        tokenizer: Its tokenizer; by default the one saved with the model.
        batch_size: How many requests go through the model at once.
        max_tokens: The most tokens in one reply.
        device: Where to run, for instance ``"cuda"``; by default where a loaded model is, otherwise the best device.

    Example:
        >>> TransformersLLM("Qwen/Qwen3-4B-Instruct-2507", batch_size=16).price  # loads nothing yet
        Price(input=0.0, output=0.0, batch=0.5)
    """

    model: Any = field(repr=False)
    _: KW_ONLY
    tokenizer: Any = field(default=None, repr=False)
    batch_size: int = 8
    max_tokens: int = 1024
    device: str | None = None

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        whole("max_tokens", self.max_tokens)

    @property
    def name(self) -> str:
        """The model's name or folder."""
        return self.model if isinstance(self.model, str) else str(self.model.config.name_or_path)

    @property
    def price(self) -> Price:
        """Zero."""
        return Price(0.0, 0.0)

    def body(self, request: Request) -> dict[str, Any]:
        """Return what defines the reply. The schema goes into the instructions."""
        keys = " ".join(f'"{key}"' for key in request.schema["properties"])
        schema = f"Reply with nothing but JSON that follows this schema, with the key {keys}:"
        system = f"{request.system}\n{schema}\n{json.dumps(request.schema)}"
        return {"model": self.name, "max_tokens": self.max_tokens, "system": system, "text": request.text}

    def prepare(self) -> None:
        """Load the model and its tokenizer."""
        _ = self._loaded

    def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        return self.send_all([body])[0]

    def send_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer several requests at once."""
        import torch

        model, tokenizer = self._loaded
        texts = [_chat_text(tokenizer, body["system"], body["text"]) for body in bodies]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=bodies[0]["max_tokens"],
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        ends = _end_tokens(model, tokenizer)
        return [_reply(tokenizer, tokens, ends, num_read=length) for tokens, length in zip(new, lengths, strict=True)]

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read what `send_all` returned."""
        return Completion(
            reply["text"],
            reply["input_tokens"],
            reply["output_tokens"],
            problem="" if reply["is_whole"] else "cut off",
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = self.model
        if isinstance(model, str):
            model = _without_code(AutoModelForCausalLM, model, dtype="auto", use_safetensors=True)
            model.to(self.device or _best_device())
        elif self.device:
            model.to(self.device)
        tokenizer = self.tokenizer or _without_code(AutoTokenizer, self.name)
        # A copy: the padding side is a setting of the caller's object.
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.eval(), tokenizer


def _without_code(kind: Any, name: str, **options: Any) -> Any:
    """Load a model or a tokenizer; transformers alone would ask on a terminal whether to run a repository's code."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name!r} needs its own code, which is not run. Use a model that transformers has; or, if you have read the code, load "
            "model and tokenizer yourself and pass both: TransformersLLM(model, tokenizer=tokenizer)."
        ) from error


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _chat_text(tokenizer: Any, system: str, text: str) -> str:
    """Fill the model's chat template. Some templates have no system role, and base models have no template."""
    import jinja2

    if not tokenizer.chat_template:
        return f"{tokenizer.bos_token or ''}{system}\n\n{text}\n\n"
    both: list[dict[str, str]] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    one = [{"role": "user", "content": f"{system}\n\n{text}"}]
    try:
        return str(tokenizer.apply_chat_template(both, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError:
        return str(tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True))


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _reply(tokenizer: Any, tokens: list[int], ends: set[int], *, num_read: int) -> dict[str, Any]:
    """Keep the tokens before the first end token. Without an end token the text was cut off."""
    length = next((i for i, token in enumerate(tokens) if token in ends), None)
    written = tokens if length is None else tokens[:length]
    return {
        "text": tokenizer.decode(written, skip_special_tokens=True),
        "input_tokens": num_read,
        "output_tokens": len(written),
        "is_whole": length is not None,
    }
