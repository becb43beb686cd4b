"""Jobs: one at a time, the others in a queue; cancelled where they report or compute attention."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from headscope.app.dashboard import visitor
from headscope.app.dashboard.jobs import CANCELLED, DONE, FAILED, MOST, RUNNING, Job, Queue
from headscope.kernels.errors import InvalidInput, ResourceLimit
from headscope.probes import capture

TIMEOUT = 30


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    for job in made.unfinished:
        made.cancel(job)
    assert made.wait(TIMEOUT)


class Gate:
    """Work that reports until it is let through, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, report) -> str:
        self.begun.set()
        while not self.open.wait(0.01):
            report("waiting at the gate", 1, 4)
        return "through"


def test_one_job_runs_and_the_others_wait_in_order(queue):
    gate, order = Gate(), []
    first = queue.submit(Job("test", "first", "anna", gate))
    rest = [
        queue.submit(Job("test", name, "ben", lambda report, name=name: order.append(name)))
        for name in ("second", "third")
    ]
    assert gate.begun.wait(TIMEOUT)
    assert [job.state for job in (first, *rest)] == [RUNNING, "waiting", "waiting"]
    assert queue.unfinished == [first, *rest]
    assert queue.of("anna") == [first]
    gate.open.set()
    assert queue.wait(TIMEOUT)
    assert (first.result, order) == ("through", ["second", "third"])
    assert {job.state for job in queue.jobs} == {DONE}


def test_a_cancelled_job_stops_where_it_reports_and_the_next_one_runs(queue):
    gate = Gate()
    stopped = queue.submit(Job("test", "stopped", "anna", gate))
    never = queue.submit(Job("test", "never", "anna", lambda report: 1 / 0))
    last = queue.submit(Job("test", "last", "anna", lambda report: "ran"))
    assert gate.begun.wait(TIMEOUT)
    queue.cancel(never)
    queue.cancel(stopped)
    assert queue.wait(TIMEOUT)
    assert [job.state for job in (stopped, never, last)] == [CANCELLED, CANCELLED, DONE]
    assert stopped.result is None


def test_a_pass_of_the_model_is_left_at_its_next_layer(queue, bundled, monkeypatch):
    job = Job("test", "look", "anna", lambda report: capture(bundled, [[0, 5, 6]] * 3, stats=()))
    layers: list[int] = []
    check = job.check

    def count(*given) -> None:
        layers.append(len(given))
        if len(layers) == 3:
            queue.cancel(job)
        check()

    monkeypatch.setattr(job, "check", count)
    queue.submit(job)
    assert queue.wait(TIMEOUT)
    # The first call is the one before the work.
    assert (job.state, len(layers)) == (CANCELLED, 3), "a model of four layers stops in its second"


def test_a_refusal_is_its_line_and_a_bug_its_traceback(queue):
    def refused(report):
        raise InvalidInput("name: taken; choose another")

    jobs = [
        queue.submit(Job("test", "refused", "anna", refused)),
        queue.submit(Job("test", "bug", "anna", lambda report: 1 / 0)),
        queue.submit(Job("test", "exit", "anna", lambda report: exec("raise SystemExit"))),
        queue.submit(Job("test", "after", "anna", lambda report: "ran")),
    ]
    assert queue.wait(TIMEOUT)
    assert [job.state for job in jobs] == [FAILED, FAILED, FAILED, DONE]
    assert (jobs[0].error, jobs[0].trace) == ("name: taken; choose another", "")
    assert jobs[1].error == "ZeroDivisionError: division by zero"
    assert "1 / 0" in jobs[1].trace


def test_the_same_request_twice_is_one_job_and_another_visitor_has_its_own(queue):
    gate = Gate()
    make = partial(Job, "test", "capture", function=gate, about=("run", 1))
    first = queue.submit(make("anna"))
    assert queue.submit(make("anna")) is first
    assert queue.submit(make("ben")) is not first
    assert queue.find("anna", ("test", ("run", 1))) is first
    assert queue.last("anna", "test", "run") is first
    gate.open.set()
    assert queue.wait(TIMEOUT)
    assert queue.submit(make("anna")) is not first, "once it has ended it may be asked again"


def test_a_visitor_who_queues_too_much_is_refused(queue):
    gate = Gate()
    for number in range(MOST):
        queue.submit(Job("test", str(number), "anna", gate))
    with pytest.raises(ResourceLimit, match=r"^jobs: 8 of yours run or wait; cancel one"):
        queue.submit(Job("test", "one more", "anna", gate))
    queue.submit(Job("test", "of another", "ben", gate))
    gate.open.set()


def test_progress_is_reported_by_phase(queue):
    gate = Gate()
    job = queue.submit(Job("test", "told", "anna", gate))
    assert gate.begun.wait(TIMEOUT)
    while not job.share:
        threading.Event().wait(0.01)
    assert job.share == 0.25
    assert job.phases.describe().startswith("waiting at the gate: 25% done")
    gate.open.set()


def test_a_browser_is_known_again_by_its_token_however_it_is_masked():
    token = bytes.fromhex("00112233445566778899aabbccddeeff")

    def cookie(mask: bytes) -> str:
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(token))
        return f"2|{mask.hex()}|{masked.hex()}|1700000000"

    assert visitor._token(cookie(b"abcd")) == visitor._token(cookie(b"wxyz")) == token
    assert visitor._token("") == visitor._token("2|zz|00|1") == visitor._token("2||00|1") == b""
