"""Accessibility by axe-core, which comes as a package and is kept in the user's cache.

The script is Deque's (MPL-2.0); headscope neither ships nor runs it outside the tests.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from model_packages import kept

from headscope.kernels.errors import InvalidInput
from headscope.probes.models.packaged import download, extract

if TYPE_CHECKING:
    from playwright.sync_api import Page

REQUIREMENT = "axe-playwright-python==0.1.8"
SCRIPT = "axe_playwright_python/axe.min.js"
SHA256 = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc"
SERIOUS = ("serious", "critical")
RUN = """
async (known) => {
  const foreign = (rule, node) => known.some(([of, within]) =>
    of === rule && document.querySelector(node.target[0])?.closest(within));
  const {violations} = await axe.run();
  return violations
    .map((rule) => ({...rule, nodes: rule.nodes.filter((node) => !foreign(rule.id, node))}))
    .filter((rule) => rule.nodes.length);
}
"""


def script() -> Path:
    """Return axe-core 4.12.1, fetched once; skip the test where it cannot be had."""

    def fill(folder: Path, wheels: Path) -> None:
        extract(download(REQUIREMENT, wheels), SCRIPT, SHA256, folder)

    try:
        return kept("axe-core-4.12.1", fill) / Path(SCRIPT).name
    except InvalidInput as error:
        pytest.skip(f"axe-core is not in the cache and cannot be fetched: {error}")


def violations(
    page: "Page", impacts: tuple[str, ...] = SERIOUS, known: tuple[tuple[str, str], ...] = ()
) -> list[str]:
    """List what a page in a browser does wrong for some of its users: rule, element, why.

    ``known`` are rules and selectors: elements in these are not ours to mend, by this rule alone.
    """
    page.add_script_tag(path=script())
    result = page.evaluate(RUN, [list(pair) for pair in known])
    return [
        f"{rule['impact']} {rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in result
        if rule["impact"] in impacts
        for node in rule["nodes"]
    ]
