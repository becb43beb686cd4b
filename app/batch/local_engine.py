"""The cells of a batch one after the other, in this process."""

from collections.abc import Iterator, Sequence

from headscope.app.batch.job import Group, Job
from headscope.app.batch.worker import Outcome, analyze, capture_part, group_slices, join_parts
from headscope.app.pipeline import Progress

Todo = Sequence[tuple[Group, Sequence[str]]]
Outcomes = Iterator[tuple[Group, str, Outcome]]


def run(job: Job, todo: Todo, progress: Progress | None = None) -> Outcomes:
    """Run the analyses that are left in each group; yield each outcome as it is ready."""
    for group, names in todo:
        parts = [capture_part(job, group, part, progress) for part in group_slices(job, group)]
        capture = join_parts(job, group, parts)
        for name in names:
            yield group, name, analyze(job, group, name, capture, progress)
