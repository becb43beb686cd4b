"""A button of the dashboard under Streamlit's AppTest, and the work that it starts."""

from typing import TYPE_CHECKING

from headscope.app.dashboard.jobs import QUEUE

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

# Seconds until every job has ended.
TIMEOUT = 90


def press(app: "AppTest", key: str) -> "AppTest":
    """Press a button, wait for the jobs, and draw the screen again."""
    app.button(key=key).click().run()
    assert QUEUE.wait(TIMEOUT)
    app.run()
    assert not app.exception
    return app
