"""The way of a newcomer: a fresh clone, and the README's commands up to a real model's report."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from headscope.probes.models import packaged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
(TEXT,) = re.findall(r'^text = "(.*)"', SECTIONS["In a notebook"], re.MULTILINE)
START = 600  # seconds that a server may take
# What this test's own environment says of Python is not a newcomer's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def commands(section: str) -> list[str]:
    """Read the commands of a section, without its remarks."""
    (block,) = re.findall(r"```sh\n(.*?)```", SECTIONS[section], re.DOTALL)
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


def run(lines: list[str], folder: Path) -> str:
    """Run commands in one shell, as they are typed; all have to succeed."""
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@contextmanager
def serving(line: str, folder: Path, address: str) -> Iterator[str]:
    """Run the command that serves the dashboard until the visit is over."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as asked:
        if asked.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port}, which the README names, is taken by another program")
    server = subprocess.Popen(
        ["bash", "-c", line], cwd=folder, env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def visit(new_page, address: str):
    page = new_page(1280, 1400)
    for _ in range(START):
        try:
            page.goto(address)
            break
        except Exception:  # the server is not there yet
            page.wait_for_timeout(1000)
    page.locator(".st-key-token_view [role=option]").first.wait_for(timeout=START * 1000)
    return page


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as the README has it cloned, with its demo made."""
    place = tmp_path_factory.mktemp("newcomer")
    fetch, demo, _ = commands("Start")
    run([fetch.replace("<this repository>", str(ROOT)), demo], place)
    return place / "headscope"


def test_the_demo_and_the_dashboard_with_a_text_of_ones_own(clone, new_page):
    for name in re.findall(r"`([\w.]+\.(?:html|parquet|csv|json))`", SECTIONS["Start"]):
        assert (clone / "runs" / "demo" / name).exists(), name
    (address,) = re.findall(r"http://localhost:\d+", SECTIONS["Start"])
    with serving(commands("Start")[-1], clone, address):
        page = visit(new_page, address)
        page.locator(".st-key-text textarea").fill(TEXT)
        page.locator(".st-key-text textarea").press("Control+Enter")
        tokens = page.locator(".st-key-token_view [role=option]")
        for word in TEXT.split():
            expect(tokens.filter(has_text=word).first).to_be_visible()
        expect(tokens).to_have_count(1 + len(TEXT.split()))


def test_a_model_and_prompts_of_ones_own(clone, new_page):
    (clone / "prompts.txt").write_text(f"{TEXT}\n{TEXT}\n")
    *steps, last = commands("Your model")
    report, _, app = last.partition(" && ")
    assert app.startswith("headscope app")
    activate = commands("A real model")[0]
    run([activate, *(line.replace("MODEL", "headscope/bundled") for line in steps), report], clone)
    with serving(f"{activate}\n{app}", clone, "http://localhost:8501") as address:
        run_shown = visit(new_page, address).get_by_role("combobox", name="Run", exact=True)
        expect(run_shown).to_have_value("mine")


@pytest.mark.skipif(not packaged.is_fetched("headscope/smollm2"), reason="SmolLM2 is not fetched")
def test_a_report_on_a_real_model_shows_what_the_readme_states(clone, new_page):
    printed = " ".join(run(commands("A real model"), clone).split())
    (shown,) = re.findall(r"```text\n(.*?)```", SECTIONS["A real model"], re.DOTALL)
    rows = [re.findall(r"(L\d+H\d+) ([\d.]+)", line) for line in shown.splitlines()]
    assert len([row for row in rows if row]) == 4
    for row in filter(None, rows):
        # Alike to the last digit but one, wherever it was computed.
        result = re.search(r"\s+".join(rf"{head} ([\d.]+)" for head, _ in row), printed)
        assert result, row
        expected = [float(value) for _, value in row]
        assert [float(value) for value in result.groups()] == pytest.approx(expected, rel=0.02)
    page = new_page(1280, 900)
    page.goto((clone / "runs" / "smollm2" / "report.html").as_uri())
    strongest = next(row[0][0] for row in rows if row and row[0][0] == "L23H3")
    box = page.get_by_text(strongest).first.bounding_box()
    assert box is not None
    assert box["y"] < 900, "the answer stands on the first screen"
