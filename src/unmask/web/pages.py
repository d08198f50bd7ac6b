"""Reports of runs and studies, as they lie in their folders: `report/NAME`. A report may load nothing and run nothing."""

import os
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from unmask.web.shelf import Shelf

# of the same origin, so that the page around it can ask how tall it is; without scripts nothing in it can use that
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox allow-same-origin"
)


def routes(app: FastAPI, shelf: Shelf) -> None:
    """Let `app` answer for the report of everything on the shelf, by its name there."""

    @app.get("/report/{name:path}")
    def report(name: str) -> Response:
        folder = shelf.folders().get(name)  # looked up, never made into a path
        try:
            page = (folder / "report.html").read_bytes() if folder else None
        except OSError:
            page = None
        headers = {"content-security-policy": POLICY, "cache-control": "no-store"}
        if page is None:
            return PlainTextResponse("There is no report of that name here.\n", 404, headers)
        return HTMLResponse(page, headers=headers)


def address(name: str) -> str:
    """Where the report of what is called so on the shelf is found, seen from the page."""
    return f"report/{quote(os.fsencode(name), safe='')}"
