"""Entry of the dashboard: `headscope app RUN` runs this file with the folder as its argument."""

import streamlit as st

from headscope.app.dashboard import cache, screens
from headscope.app.dashboard.components import job_tray
from headscope.app.dashboard.launch import is_local

# Columns of containers of such a key stand below each other where they would be narrow.
STYLE = """<style>
@media (max-width: 1100px) {
  [class*="st-key-stack_"] [data-testid="stColumn"] { min-width: 100%; }
}
</style>"""

st.set_page_config(page_title="headscope", page_icon="🔬", layout="wide")
st.html(STYLE)
page = st.navigation(list(screens.pages(cache.folder()).values()))
address = str(st.get_option("server.address") or "")
if address and not is_local(address):
    st.warning(
        f"Served at {address}, without a password: whoever reaches this address can read the runs "
        "here, load models from this machine's disk and start jobs.",
        icon=":material/public:",
    )
job_tray.draw()
page.run()
