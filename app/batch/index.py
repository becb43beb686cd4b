"""Index: the page of a batch, with every cell, its state and its report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from urllib.parse import quote

from headscope.app.batch.job import Group
from headscope.app.batch.state import HEADS, LOG, MANIFEST, REPORTS, Folder, Record
from headscope.app.report import page

QUERY = f"""SELECT model, task, analysis, metric, name, value, lower, upper
FROM read_parquet('{HEADS}/**/*.parquet', hive_partitioning = true)
ORDER BY abs(value) DESC NULLS LAST LIMIT 20;"""


def compose(folder: Folder, records: Sequence[Record]) -> str:
    """Return the HTML of the index."""
    failed = [one for one in records if one["state"] == "failed"]
    count = f"{len(records) - len(failed)} of {len(records)} cells have a result"
    body = [
        f"<h1>{html.escape(folder.job.title)}</h1>",
        f'<p class="lead">{count}. A cell is one model, task, seed and analysis; the cells of one '
        "model, task and seed share a capture and a report.</p>",
    ]
    if failed:
        body.append(
            page.note(f"{len(failed)} cells failed; the reason is in their row.", warn=True)
        )
        body += ['<h2 id="failed">Cells that failed</h2>', _failures(failed)]
    body += ['<h2 id="cells">Cells</h2>', _cells(folder, records)]
    body += [
        '<h2 id="table">The table</h2>',
        f"<p>One row a head and metric, in <code>{HEADS}/</code>, by folders of model, task, "
        "analysis and seed. For example in DuckDB:</p>",
        f"<pre><code>{html.escape(QUERY)}</code></pre>",
        '<h2 id="provenance">Provenance</h2>',
        f'<p>Also in <a href="{MANIFEST}">{MANIFEST}</a>, with the digest of every file. Only '
        f"<code>{LOG}</code> differs from one run of the job to the next.</p>",
        page.pairs(folder.job.identity()),
    ]
    return page.page(folder.job.title, body)


def _failures(failed: Sequence[Record]) -> str:
    rows = (
        tuple(
            html.escape(str(one[name])) for name in ("model", "task", "seed", "analysis", "reason")
        )
        for one in failed
    )
    return page.table(("Model", "Task", "Seed", "Analysis", "Reason"), rows)


def _cells(folder: Folder, records: Sequence[Record]) -> str:
    """One folded table a group, its report first."""
    parts = []
    for group in folder.job.groups:
        own = [one for one in records if _of(group, one)]
        done = sum(one["state"] == "done" for one in own)
        rows = []
        for one in own:
            name = html.escape(one["analysis"])
            said = html.escape(one.get("reason", "")) or f"{one['rows']} rows"
            shown = f'<a href="{_address(group)}#{name}">{name}</a>' if done else name
            rows.append((shown, one["state"], said))
        link = f'<p><a href="{_address(group)}">Report</a></p>' if done else ""
        inside = link + page.table(("Analysis", "State", "Rows, or why there are none"), rows)
        parts.append(page.folded(f"{group.title}: {done} of {len(own)} done", inside))
    return "".join(parts)


def _of(group: Group, record: Record) -> bool:
    own = (group.subject.label, group.questions.label, group.seed)
    return (record["model"], record["task"], record["seed"]) == own


def _address(group: Group) -> str:
    # The names of the folders hold %: in an address, that is %25.
    return quote(f"{REPORTS}/{group.place}/report.html", safe="/=")
