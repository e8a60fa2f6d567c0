"""What the clients of Anthropic and OpenAI have in common: both SDKs come from one generator."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from embedtune.errors import OptionalDependencyError
from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError

T = TypeVar("T")

_KEY = re.compile(r"\bsk-[\w-]{4,}|(?<=Bearer )\S+|(?<=Basic )\S+|(?<=://)[^/\s@]{1,200}(?=@)")
_SECRET_NAME = re.compile(r"auth|key|token|secret|pass|cookie|credential", re.IGNORECASE)
_MIN_SECRET = 4  # characters: a shorter value, such as "none", says nothing

TIMEOUT = 300.0  # seconds for one reply

_RETRIED_STATUSES = {408, 409, 425, 429}
_REMEDIES = {
    401: "Check the API key in {variable}.",
    402: "Check the billing of the account.",
    403: "Check the permissions of the key and the account.",
    404: "Check the model's name; retired models are refused, too.",
}
# Limits of the account: waiting does not help. Some arrive as 429, some as 400.
_LIMIT_WORDS = ("spend_limit", "ramp_limit", "insufficient_quota", "credit balance", "usage limit", "billing")


def require_sdk(package: str, *, purpose: str) -> None:
    """Raise an `OptionalDependencyError` unless a package can be imported."""
    if find_spec(package) is None:
        raise OptionalDependencyError(package, extra=package, purpose=purpose)


def client_of(package: str, make: str, *, client: Any = None, **options: Any) -> Any:
    """Return the given client, or a new one, without the SDK's own retries: each try is accounted for by itself."""
    if client is None:
        client = call(package, lambda: getattr(import_module(package), make)(**options))
    return client.with_options(max_retries=0, timeout=TIMEOUT) if hasattr(client, "with_options") else client


def openai_client(client: Any, base_url: str | None) -> Any:
    """Return a client of OpenAI's SDK. The user's OpenAI key is never sent to another server."""
    options = {"base_url": base_url, "api_key": "none"} if base_url else {}
    return client_of("openai", "OpenAI", client=client, **options)


def call(package: str, function: Callable[[], T]) -> T:
    """Call an SDK and translate its errors into what to do about them.

    Raises:
        TemporaryError: If it may work in a moment.
        RequestError: If this request will never work.
        GenerationStoppedError: If no request will work.
    """
    sdk: Any = import_module(package)
    try:
        return function()
    except sdk.APIStatusError as err:
        redact(err)
        raise _of_status(package, err) from err
    except sdk.APIConnectionError as err:
        redact(err)
        never_sent = type(err.__cause__).__name__ in {"ConnectError", "ConnectTimeout", "PoolTimeout"}
        raise TemporaryError(f"no answer: {type(err).__name__}", maybe_paid=not never_sent) from err
    except (sdk.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError, AttributeError) as err:
        # The SDKs do not check replies: a page of a proxy arrives as a string instead of an object.
        redact(err)
        raise TemporaryError("the reply was unreadable", maybe_paid=True) from err
    except (getattr(sdk, "AnthropicError", sdk.APIError), getattr(sdk, "OpenAIError", sdk.APIError)) as err:
        redact(err)
        raise without_key(package, err) from err
    except TypeError as err:
        if "authentication" not in str(err):
            raise
        raise without_key(package, err) from err
    except Exception as err:
        if type(err).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2"}:
            raise
        redact(err)
        raise TemporaryError(f"the connection broke: {type(err).__name__}", maybe_paid=True) from err


def without_key(package: str, err: Exception) -> GenerationStoppedError:
    """Return the error for an SDK that finds no key."""
    said = _redacted(str(err)).strip('"')
    return GenerationStoppedError(f"There is no API key: set {package.upper()}_API_KEY, or pass a client. ({said})")


def without_password(url: str) -> str:
    """Return an address without the user and the password in it, and without its query.

    Example:
        >>> without_password("https://me:secret@proxy.local:8080/v1?token=abc")
        'https://proxy.local:8080/v1'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _redacted(message: str, secrets: Iterable[str] = ()) -> str:
    """Hide what was sent as a key, and what looks like one: a proxy may send back what it received."""
    for secret in secrets:
        message = re.sub(re.escape(secret), "[key]", message, flags=re.IGNORECASE)
    return _KEY.sub("[key]", message)


def _secrets_of(request: Any) -> list[str]:
    """Return what a request sent as keys or passwords, in each form that a server may send back, longest first."""
    found: set[str] = set()
    for name, value in getattr(request, "headers", {}).items():
        if _SECRET_NAME.search(name):
            found |= {value, value.partition(" ")[2]}
    url = urlsplit(str(getattr(request, "url", "")))
    found |= {url.password or "", *(value for name, value in parse_qsl(url.query) if _SECRET_NAME.search(name))}
    forms = found | {quote(one, safe="") for one in found} | {unquote(one) for one in found}
    forms |= {base64.b64encode(one.encode()).decode() for one in found}
    return sorted((one for one in forms if len(one) >= _MIN_SECRET), key=len, reverse=True)


def redact(err: BaseException) -> None:
    """Hide keys in an error of an SDK and those that led to it, which tracebacks show."""
    secrets = _secrets_of(vars(err).get("request") or vars(err).get("_request"))
    seen: set[int] = set()
    waiting: list[BaseException | None] = [err]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(_without(secrets, value) for value in one.args)
        for name in ("message", "body", "doc"):  # of the SDKs' errors, and of a JSONDecodeError
            if hasattr(one, name):
                setattr(one, name, _without(secrets, getattr(one, name)))
        waiting += [one.__cause__, one.__context__]


def _without(secrets: Sequence[str], value: Any) -> Any:
    """Return a value of JSON without secrets in its texts."""
    if isinstance(value, str):
        return _redacted(value, secrets)
    if isinstance(value, dict):
        return {_without(secrets, key): _without(secrets, inner) for key, inner in value.items()}
    return [_without(secrets, inner) for inner in value] if isinstance(value, list) else value


def _of_status(package: str, err: Any) -> Exception:
    """Classify an HTTP status other than 2xx. None of these is billed."""
    status = int(err.status_code)
    body = err.body if isinstance(err.body, dict) else {}
    error = body.get("error", body)  # one SDK unwraps it, the other does not
    what = error.get("message") if isinstance(error, dict) else None
    message = f"HTTP {status}: {_redacted(str(what or err.message))[:500]}"
    said = f"{getattr(err, 'error_code', '')} {getattr(err, 'code', '')} {what or err.message}".lower()
    if any(word in said for word in _LIMIT_WORDS):
        return GenerationStoppedError(f"{message} Raise the limit or top up the account, and run again.")
    if status in _REMEDIES:
        remedy = _REMEDIES[status].format(variable=f"{package.upper()}_API_KEY")
        return GenerationStoppedError(f"{message} {remedy}")
    if status in _RETRIED_STATUSES or status >= 500:
        return TemporaryError(f"HTTP {status}", retry_after=_retry_after(err.response.headers))
    return RequestError(message)


def _retry_after(headers: Any) -> float | None:
    """Return how many seconds a server asks to wait, if it says so in seconds."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
