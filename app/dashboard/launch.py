"""The command that serves the dashboard; on this machine only, unless its user says otherwise."""

import ipaddress
import sys
from importlib.util import find_spec
from pathlib import Path

from headscope.analyses.series import timeline_folder
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage import run_folder

ADDRESS = "127.0.0.1"
UPLOAD = 20
"""Megabytes of a file that may be uploaded."""


def is_local(address: str) -> bool:
    """Return whether an address is reached from this machine alone.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0"), is_local("example.org")
    (True, True, False, False)
    """
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def command(run: Path, port: int = 8501, address: str = ADDRESS) -> list[str]:
    """Return the command line that serves a run, or a folder of runs.

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
        str(Path(__file__).with_name("server.py")),
        f"--server.address={address}",
        f"--server.port={port}",
        "--server.headless=true",
        f"--server.maxUploadSize={UPLOAD}",
        # Streamlit collects garbage after every poll of a job: a pause for all sessions.
        "--runner.postScriptGC=false",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
        "--client.showErrorLinks=false",
        # Streamlit's own red is too pale for small text on either ground.
        "--theme.light.primaryColor=#c62839",
        "--theme.dark.primaryColor=#ff8087",
        "--",
        str(run.absolute()),
    ]


def served(folder: Path) -> Path:
    """Return the folder that a dashboard opens: of a run, of a timeline, or of runs."""
    if timeline_folder.holds(folder) or any(folder.glob(f"*/{run_folder.MANIFEST}")):
        return folder
    return run_folder.open(folder).path
