"""Streamlit's scripts, compressed once and kept, and those of the first screen announced early.

Streamlit sends them as they are, 2.7 MB for an empty app, because compressing them at every request
costs more than it saves. Compressed once they are a third of that, which whoever opens a run
through a tunnel waits for. A browser finds out what a screen needs only when the first messages
arrive; named in a header of the page, the scripts are there by then.
"""

import gzip
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import streamlit as st
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/static/"
FOLDER = Path(st.__file__).parent / "static" / "static"
TYPES = {".js": "text/javascript", ".css": "text/css"}
# Names of these files hold a hash of what is in them.
HEADERS = {
    "Content-Encoding": "gzip",
    "Cache-Control": "public, immutable, max-age=31536000",
    "Vary": "Accept-Encoding",
}


class CompressedScripts:
    """Answers requests for Streamlit's scripts and styles; passes all others on.

    The page names the scripts of ``early`` parts of Streamlit, and what they import, in its header.
    """

    def __init__(self, app: ASGIApp, early: Sequence[str] = ()) -> None:
        self.app = app
        self.links = ", ".join(f"<.{PREFIX}{name}>; rel=modulepreload" for name in _needed(early))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = _static_file(scope)
        if scope["type"] == "http" and scope["path"] == "/":
            await self.app(scope, receive, partial(self._announce, send))
        elif name in _names():
            content, kind = _compressed(name), TYPES[Path(name).suffix]
            await Response(content, media_type=kind, headers=HEADERS)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _announce(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start" and self.links:
            headers = [*message["headers"], (b"link", self.links.encode())]
            message = {**message, "headers": headers}
        await send(message)


def _needed(parts: Sequence[str]) -> list[str]:
    """List the scripts of some parts of Streamlit, with those that they import."""
    by_part = {Path(name).name.split(".")[0]: name for name in _names() if name.endswith(".js")}
    scripts: dict[str, None] = {}
    queue = [by_part[part] for part in parts if part in by_part]
    while queue:
        name = queue.pop()
        if name not in scripts:
            scripts[name] = None
            text = (FOLDER / name).read_text(encoding="utf-8")
            queue += [f"js/{other}" for other in re.findall(r'from"\./([^"]+\.js)"', text)]
    return list(scripts)


def _static_file(scope: Scope) -> str:
    """Return the name of the requested static file, "" where it must stay uncompressed."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return ""
    accepted = dict(scope["headers"]).get(b"accept-encoding", b"")
    path = str(scope["path"])
    return path.removeprefix(PREFIX) if b"gzip" in accepted and path.startswith(PREFIX) else ""


@cache
def _names() -> frozenset[str]:
    """List the files that are compressed; nothing else of the disk is ever read."""
    return frozenset(
        file.relative_to(FOLDER).as_posix()
        for file in FOLDER.rglob("*")
        if file.suffix in TYPES and file.is_file()
    )


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress((FOLDER / name).read_bytes(), compresslevel=6, mtime=0)
