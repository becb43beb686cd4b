"""Streamlit's scripts go out compressed where a browser takes that, and nothing else does."""

import asyncio
import gzip
from typing import Any

import pytest

from headscope.app.dashboard.compressed_scripts import FOLDER, CompressedScripts
from headscope.app.dashboard.server import EARLY

SCRIPT = next(FOLDER.rglob("BidiComponent*.js"))


def answer(path: str, accepts: str = "gzip, br") -> tuple[dict[str, str], bytes]:
    """Return headers and body of one request; the app behind says "plain"."""
    sent: list[dict[str, Any]] = []

    async def behind(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    headers = [(b"accept-encoding", accepts.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(CompressedScripts(behind, EARLY)(scope, receive, send))
    result = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return result, b"".join(message.get("body", b"") for message in sent)


def test_a_script_arrives_compressed_and_whole():
    headers, body = answer(f"/static/js/{SCRIPT.name}")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == SCRIPT.read_bytes()
    assert len(body) < 0.5 * SCRIPT.stat().st_size


@pytest.mark.parametrize(
    ("path", "accepts"),
    [
        (f"/static/js/{SCRIPT.name}", "identity"),
        ("/static/js/none.js", "gzip"),
        ("/static/../../../secrets.js", "gzip"),
        ("/static//etc/passwd", "gzip"),
        (f"/js/{SCRIPT.name}", "gzip"),
        ("/_stcore/health", "gzip"),
    ],
)
def test_all_else_is_left_to_streamlit(path, accepts):
    assert answer(path, accepts)[1] == b"plain"


def test_the_page_names_the_scripts_of_its_first_screen():
    headers, _ = answer("/")
    parts = {link.split("/")[-1].split(".")[0] for link in headers["link"].split(", ")}
    assert set(EARLY) <= parts
    files = [link.split(">")[0].removeprefix("<./static/") for link in headers["link"].split(", ")]
    assert all((FOLDER / file).is_file() for file in files)
