"""The index of a batch: a page with every cell, its state and its report."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from headscope.app.batch.job import Group
from headscope.app.batch.state import HEADS, LOG, MANIFEST, REPORTS, BatchState, Record
from headscope.app.report import page

QUERY = f"""SELECT model, task, analysis, variable, name, value, lower, upper
FROM read_parquet('{HEADS}/**/*.parquet', hive_partitioning = true)
ORDER BY abs(value) DESC NULLS LAST LIMIT 20;"""


def html(batch: BatchState, records: Sequence[Record]) -> str:
    """Return the page of a batch."""
    failed = [record for record in records if record["state"] == "failed"]
    columns = ("model", "task", "seed", "analysis", "reason")
    return page.render(
        "batch",
        batch.job.title,
        count=len(records),
        done=len(records) - len(failed),
        failed=[[record[name] for name in columns] for record in failed],
        groups=[_group(group, records) for group in batch.job.groups],
        table=HEADS,
        query=QUERY,
        files={"manifest": MANIFEST, "log": LOG},
        identity=batch.job.identity(),
    )


def _group(group: Group, records: Sequence[Record]) -> dict[str, Any]:
    """Return the cells of a group, and where its report is."""
    key = (group.model.name, group.task.label, group.seed)
    cells = [
        record for record in records if (record["model"], record["task"], record["seed"]) == key
    ]
    return {
        "title": group.title,
        "records": [{"reason": "", **record} for record in cells],
        "done": sum(record["state"] == "done" for record in cells),
        # The names of the folders hold %: in an address, that is %25.
        "address": quote(f"{REPORTS}/{group.subfolder}/report.html", safe="/="),
    }
