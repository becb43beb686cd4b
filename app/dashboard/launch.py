"""The command that serves the dashboard, on this machine only."""

import sys
from importlib.util import find_spec
from pathlib import Path

from headscope.analyses.series import kept
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import run_folder

ADDRESS = "127.0.0.1"


def command(run: Path, port: int = 8501) -> list[str]:
    """Return the command line that serves a run.

    ``-P`` keeps the working folder off the path: in a checkout it holds a folder ``kernels`` that
    transformers would take for Hugging Face's package. Without Streamlit it is refused.

    >>> command(Path("runs/demo"), 8600)[1:5]
    ['-P', '-m', 'streamlit', 'run']
    """
    if find_spec("streamlit") is None:
        raise InvalidInput("app: Streamlit is not installed; pip install 'headscope[app]'")
    return [
        sys.executable,
        "-P",
        "-m",
        "streamlit",
        "run",
        str(Path(__file__).with_name("main.py")),
        f"--server.address={ADDRESS}",
        f"--server.port={port}",
        "--server.headless=true",
        "--server.maxUploadSize=20",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
        "--client.showErrorLinks=false",
        "--",
        str(run.absolute()),
    ]


def served(folder: Path) -> Path:
    """Return the folder that a dashboard opens: of a run, or of a timeline."""
    return folder if kept.holds(folder) else run_folder.open(folder).path
