"""The pages in docs/ that follow from the code are what the code says now."""

import subprocess
import sys
from pathlib import Path

from headscope.analyses._runtime import taxonomy
from headscope.kernels import statistics

ROOT = Path(__file__).parents[2]


def check(script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", script, "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generated_pages_are_up_to_date():
    done = check(ROOT / "docs" / "tables.py")
    assert done.returncode == 0, done.stderr


def test_an_old_page_is_named_with_the_command(tmp_path):
    docs, results = tmp_path / "docs", tmp_path / "benchmarks"
    docs.mkdir()
    for name in ("tables.py", "statistics.md", "head-types.md", "benchmarks.md"):
        (docs / name).write_text((ROOT / "docs" / name).read_text())
    results.symlink_to(ROOT / "benchmarks")
    assert check(docs / "tables.py").returncode == 0
    page = docs / "statistics.md"
    page.write_text(page.read_text().replace("nats", "bits"))
    done = check(docs / "tables.py")
    assert done.returncode == 1
    assert done.stderr == "docs: statistics.md out of date; run python -P docs/tables.py\n"


def test_every_statistic_has_its_row_and_the_readme_leads_there():
    page = (ROOT / "docs" / "statistics.md").read_text()
    for name in statistics.names():
        assert f"| `{name}` | {statistics.load(name).title} |" in page
        assert page.count(f"`{name}`") >= 3
    kinds = (ROOT / "docs" / "head-types.md").read_text()
    for kind, term in taxonomy.TERMS.items():
        assert f"| {kind} | {term.stage} |" in kinds
    readme = (ROOT / "README.md").read_text()
    assert "(docs/statistics.md)" in readme
    assert "(docs/head-types.md)" in readme
    assert "(docs/benchmarks.md)" in readme
