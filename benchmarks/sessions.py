"""Several browser sessions on a dashboard for minutes: errors, and whether its memory is flat.

``python -P benchmarks/sessions.py RUN`` opens eight for two minutes, and exits with 1 where one
sees an error or the server grows by more than 5 %.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from playwright.sync_api import sync_playwright

from headscope_benchmarks.sessions import serve, visit


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright, serve(asked.run) as (address, process):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = visit(browser, address, process, asked.sessions, asked.seconds)
        browser.close()
    for seconds, megabytes in found.megabytes:
        print(f"{seconds:6.0f} s  {megabytes:7.0f} MB")
    share = found.grown / found.megabytes[-1][1]
    print(f"{found.opened} screens opened, {len(found.errors)} errors, {share:+.1%} memory")
    print(*found.errors, sep="\n")
    return int(bool(found.errors) or share > 0.05)


if __name__ == "__main__":
    sys.exit(main())
