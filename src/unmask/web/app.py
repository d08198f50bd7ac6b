"""The page in the browser: its tabs, and how it is served.

Nothing leaves the machine: no fonts, analytics or share links, and a content security policy that lets the browser ask nobody
else. Uploads are limited and stay in memory; what gradio may write lies in a temporary folder that is deleted at the end.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes import Base, colors

from unmask.errors import BadInput
from unmask.screen import console, warn
from unmask.web import attention, maps, neighbours, pages, reconstruct, runs, study
from unmask.web.shelf import Shelf
from unmask.web.uploads import receive

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # gradio's own, which are part of the page
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "frame-src 'self'",
        "frame-ancestors 'self'",
        "form-action 'none'",
        "base-uri 'self'",
        "object-src 'none'",
    )
)
THEME = Base(
    primary_hue=colors.blue,
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
TABS = {
    "Reconstruct": reconstruct.tab,
    "Attention": attention.tab,
    "Neighbours": neighbours.tab,
    "Map": maps.tab,
    "Runs": runs.tab,
    "Study": study.tab,
}


def page(shelf: Shelf) -> gr.Blocks:
    """The page: a tab for each way to look."""
    with gr.Blocks(title="unmask", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.HTML("<h1>unmask</h1>", elem_classes="head")
        for name, tab in TABS.items():
            with gr.Tab(name, id=name.lower()):
                tab(shelf, blocks)
    return blocks.queue(default_concurrency_limit=4, max_size=64, api_open=False)


ALLOWED = re.compile(
    r"/(|config|theme\.css|upload|report/.*|(assets|static|svelte)/.*|gradio_api/(queue/(join|data)|run/predict|cancel|reset|startup-events|heartbeat/\w+))"
)
"""What the page asks for. Gradio has more doors, for files, uploads and other servers, which stay shut."""
MOST_ASKED = 2**20
"""Bytes of a question that is no upload."""


class Guarded:
    """An ASGI application of which only what the page needs can be asked, only by the page itself: one elsewhere cannot reach it,
    not even by a name that it points to this machine. Answers carry the policy."""

    def __init__(self, app: Any, hosts: tuple[str, ...]):
        """hosts: the names it answers to; () for any."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.hosts and host.rsplit(":", 1)[0] not in self.hosts:
            return await refuse(send, 421, "open the address that unmask ui printed")
        if headers.get(b"origin", f"//{host}").split("//")[-1] != host:
            return await refuse(send, 403, "only its own page may ask")
        if not ALLOWED.fullmatch(scope["path"]):
            return await refuse(send, 404, "there is no such page")
        if scope["method"] == "POST" and scope["path"] != "/upload":
            body = await whole_body(receive)
            if body is None or names_a_file(body):
                return await refuse(send, 400, "the page does not ask that")
            receive = replayed(body, receive)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *own, (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self.app(scope, receive, guarded)


async def refuse(send: Any, status: int, words: str) -> None:
    """Answer with a status and a line."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{words}\n".encode()})


async def whole_body(receive: Any) -> bytes | None:
    """The body of a request, None if it is larger than any that the page sends."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_ASKED:
            return None
    return bytes(body)


def replayed(body: bytes, receive: Any) -> Any:
    """`receive` for a request whose body was read before."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Any:
        return next(parts, None) or await receive()

    return again


def names_a_file(body: bytes) -> bool:
    """Whether gradio would take a part of a request for a file, and open its path or fetch its address."""

    def inside(value: Any) -> bool:
        if isinstance(value, dict):
            return "path" in value or any(inside(each) for each in value.values())
        return isinstance(value, list) and any(inside(each) for each in value)

    try:
        return inside(json.loads(body))
    except (ValueError, RecursionError):
        return True


def application(shelf: Shelf, loopback: bool = True) -> Guarded:
    """The page as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    receive(app, shelf.uploads)
    pages.routes(app, shelf)
    app = gr.mount_gradio_app(
        app,
        page(shelf),
        path="",
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=THEME,
        css=CSS,
    )
    return Guarded(app, ("127.0.0.1", "localhost", "[::1]") if loopback else ())


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder for all that gradio writes, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="unmask-ui-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(shelf: Shelf, host: str, port: int) -> None:
    """Serve the page until Ctrl-C. BadInput if the port is taken."""
    loopback = host in ("127.0.0.1", "localhost", "::1")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
            raise BadInput(f"cannot listen on {host}:{port} ({why}): choose another --port, or 0 for any") from None
        with temporary():
            server = uvicorn.Server(uvicorn.Config(application(shelf, loopback), log_level="warning"))
            where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
            console.print(f"[bold]{where}[/] shows {counted(shelf)}; Ctrl-C ends it", soft_wrap=True)
            if not loopback:
                warn("[yellow]warning[/] anybody on the network who reaches this address sees runs and images")
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn has closed all, then passes the signal on
                server.run(sockets=[listening])


def counted(shelf: Shelf) -> str:
    """What there is to show, in words."""
    runs, studies = len(shelf.runs()), len(shelf.studies())
    return f"{runs} run{'s' * (runs != 1)}" + (f" and {studies} stud{'ies' if studies > 1 else 'y'}" if studies else "")
