"""The command line and the dashboard, run in the process of the test."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from streamlit.testing.v1 import AppTest

from headscope.app import cli
from headscope.app.dashboard import cache, screens
from headscope.app.dashboard.jobs import QUEUE

MAIN = str(Path(cache.__file__).with_name("main.py"))


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, lines of standard error."""

    code: int
    out: str
    err: list[str]

    def printed(self) -> str:
        """The output of a command that has to succeed."""
        assert self.code == 0, self.err
        return self.out

    def refusal(self) -> str:
        """The one line of error of a command that has to be refused."""
        assert (self.code, len(self.err)) == (2, 1), self.err
        return self.err[0]


@pytest.fixture
def headscope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run a command as its user does."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["headscope", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "240")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(stop.value.code or 0), printed.out, printed.err.strip().splitlines())

    return run


@pytest.fixture(scope="session")
def run_command() -> Callable[..., None]:
    """Run a command that has to succeed, for a fixture that several tests share."""

    def run(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["headscope", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        assert not stop.value.code

    return run


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Open a screen of the dashboard on a run, with the parameters of a link."""

    def run(folder: Path, screen: str = screens.FIRST, /, **link: str) -> AppTest:
        monkeypatch.setattr(screens, "FIRST", screen)
        QUEUE.jobs.clear()  # without cookies all tests are one visitor
        monkeypatch.setenv(cache.VARIABLE, str(folder))
        monkeypatch.setattr("sys.argv", ["main.py"])
        app = AppTest.from_file(MAIN, default_timeout=90)
        # Its content is drawn when it is opened.
        app.session_state["share"] = True
        for field, value in link.items():
            app.query_params[field] = value
        app.run()
        assert not app.exception
        return app

    return run
