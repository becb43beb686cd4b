"""Every screen in both themes: drawn without an error, and usable with a screen reader."""

import axe
import pytest

from headscope.app.dashboard import screens

pytestmark = pytest.mark.browser
# What Streamlit's own elements do wrong: the rule, and the element.
STREAMLIT: tuple[tuple[str, str], ...] = ()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", screens.names())
def test_axe_finds_nothing_serious(screen, scheme, new_page, runs_address, settle):
    page = new_page(color_scheme=scheme)
    page.goto(f"{runs_address}/{screen}")
    settle(page)
    assert page.locator("[data-testid=stException]").count() == 0
    assert axe.violations(page, known=STREAMLIT) == []
