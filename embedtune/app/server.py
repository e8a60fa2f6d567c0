"""Serves the page on one address, and refuses what other pages of the same browser send to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedtune.errors import OptionalDependencyError

if TYPE_CHECKING:
    from embedtune.app.desk import Desk

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

# Nothing is loaded from or sent to another machine, and no other page may show this one in a frame.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def require_gradio() -> None:
    """Raise `OptionalDependencyError` if gradio is not installed."""
    if find_spec("gradio") is None:
        raise OptionalDependencyError("gradio", extra="app", purpose="embedtune app")


def serve(desk: Desk, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        desk: What the page works on.
        host: The address to listen on.
        port: The port; 0 for any that is free.
        ready: Is called with the page's address when it can be opened.

    Raises:
        OptionalDependencyError: If gradio is not installed.
        OSError: If the port is taken.
    """
    app = web_app(desk, hosts=LOOPBACK if host in LOOPBACK else ())
    import uvicorn

    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def web_app(desk: Desk, *, hosts: Collection[str]) -> Asgi:
    """Return the page as an ASGI application, guarded as `guarded` says."""
    require_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio
    from fastapi import FastAPI

    from embedtune.app.layout import CSS, HEAD, build_page, theme

    app: Asgi = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(desk),
        path="",
        css=CSS,
        head=HEAD,
        theme=theme(),
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        max_file_size=0,
    )
    return guarded(app, hosts=hosts)


def guarded(app: Asgi, *, hosts: Collection[str]) -> Asgi:
    """Refuse requests of other origins, and those by another name for this machine.

    A page from elsewhere can let the browser send requests to loopback, directly or by a name of its own that it points there
    (DNS rebinding). Neither reaches the application: the ``Origin`` must be the address that was asked, and the ``Host`` one of
    ``hosts``.

    Args:
        app: The application.
        hosts: The names by which it may be asked; empty for any.
    """

    async def only_from_here(scope: Scope, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not is_allowed(headers, hosts):
            await _refuse(scope, send)
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return only_from_here


def is_allowed(headers: MutableMapping[str, str], hosts: Collection[str]) -> bool:
    """Return whether a request with these headers comes from the page itself, or opens it.

    Example:
        >>> is_allowed({"host": "localhost:7860", "origin": "http://localhost:7860"}, {"localhost"})
        True
        >>> is_allowed({"host": "localhost:7860", "origin": "https://elsewhere.example"}, {"localhost"})
        False
    """
    asked = headers.get("host", "")
    try:
        name = urlsplit(f"//{asked}").hostname
        origin = urlsplit(headers["origin"]).netloc if "origin" in headers else asked
    except ValueError:
        return False
    if not name or (hosts and name not in hosts) or origin.lower() != asked.lower():
        return False
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


async def _refuse(scope: Scope, send: Callable[[Any], Awaitable[None]]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    content = b"Refused: this page answers only itself. Open it by the address that embedtune app printed.\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as err:
        raise OSError(f"{host}:{port} cannot be listened on: {err.strerror}. Choose another --port or --host.") from err
