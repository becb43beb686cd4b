"""Entry of the dashboard: `headscope app RUN` runs this file with the folder as its argument."""

import streamlit as st

from headscope.app.dashboard import cache, screens, state
from headscope.app.dashboard.components import job_tray
from headscope.app.dashboard.launch import is_local

# Columns of containers of such a key stand below each other where they would be narrow.
STYLE = """<style>
[data-testid=stMainBlockContainer] { padding: 3rem 2rem; }
@media (max-width: 1100px) {
  [class*="st-key-stack_"] [data-testid="stColumn"] { min-width: 100%; }
}
/* Streamlit's own are paler than can be read well. */
[data-testid="stCaptionContainer"] { color: inherit; opacity: 0.8; }
/* White on the paler red of the dark theme cannot be read. */
[data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primary"]:hover,
[data-testid="stMultiSelect"] [data-tag] {
  background-color: #c62839; border-color: #c62839; color: #fff;
}
/* Links to other screens look like the buttons beside them. */
[data-testid="stMain"] [data-testid="stPageLink-NavLink"] {
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: 0.4rem 0.75rem;
}
</style>"""

st.set_page_config(page_title="headscope", page_icon="🔬", layout="wide")
st.html(STYLE)
pages = screens.pages(cache.folder())
# The first one has its own name, too, for links that were made where another one was the first.
named = screens.page(next(iter(pages)))
page = st.navigation([*pages.values(), named], position="hidden")
state.open_address(page.title)
state.keep_address(drawn=False)
with st.sidebar.container(key="navigation", gap="xxsmall"):
    first = next(iter(pages.values()))
    for target in pages.values():
        # Links of our own: Streamlit's leave the address behind. A link is marked on its own page.
        link = page if page is named and target is first else target
        st.page_link(link, query_params=state.address())
address = str(st.get_option("server.address") or "")
if address and not is_local(address):
    st.warning(
        f"Served at {address}, without a password: whoever reaches this address can read the runs "
        "here, load models from this machine's disk and start jobs.",
        icon=":material/public:",
    )
job_tray.draw()
try:
    page.run()
finally:
    state.keep_address()
