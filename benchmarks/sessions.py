"""Several browser sessions on a dashboard for minutes: errors, and whether its memory is flat.

``python -P benchmarks/sessions.py RUN`` opens eight for two minutes, keeps the result beside the
others, and exits with 1 where one sees an error or what another one does, or the server grows by
more than 5 %.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from playwright.sync_api import sync_playwright

from headscope.probes.storage import run_folder
from headscope_benchmarks import machine, terminal
from headscope_benchmarks.sessions import serve, visit

# The server may grow by so much after the first third, in which every screen is seen.
SHARE = 0.05


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the result")
    options = parser.parse_args()
    terminal.check_folder(options.out)
    run = run_folder.open(options.run)
    texts = [f"Once upon a time {at} birds sang." for at in range(options.sessions)]
    described = {**machine.describe(), "load_before": machine.load()}
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright, serve(options.run) as (address, process):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visits = visit(browser, address, process, texts, options.seconds)
        browser.close()
    for seconds, megabytes in visits.megabytes:
        print(f"{seconds:6.0f} s  {megabytes:7.0f} MB")
    share = visits.grown / visits.megabytes[-1][1]
    print(f"{visits.opened} screens opened, {len(visits.errors)} errors, {share:+.1%} memory")
    print(*visits.errors, sep="\n")
    result = {
        "machine": {**described, "load_after": machine.load()},
        "model": run.manifest["model"],
        "sessions": options.sessions,
        "seconds": round(visits.megabytes[-1][0]),
        "opened": visits.opened,
        "errors": visits.errors,
        "grown": round(share, 4),
        "megabytes": [(round(seconds), round(size)) for seconds, size in visits.megabytes],
    }
    machine.save(result, f"sessions-{machine.slug(described).removeprefix('cpu-')}", options.out)
    return int(bool(visits.errors) or share > SHARE)


if __name__ == "__main__":
    terminal.run(main)
