"""Entry of the dashboard: `headscope app RUN` runs this file with the folder as its argument."""

import streamlit as st

from headscope.app.dashboard import cache, screens

# Opens where no other screen says that the folder is its own.
FIRST = "heads"

st.set_page_config(page_title="headscope", page_icon="🔬", layout="wide")
modules = {name: screens.load(name) for name in screens.names()}
folder = cache.folder()
opening = (
    name for name, screen in modules.items() if hasattr(screen, "opens") and screen.opens(folder)
)
first = next(opening, FIRST)
st.navigation(
    [
        st.Page(screen.draw, title=screen.TITLE, url_path=name, default=name == first)
        for name, screen in modules.items()
    ]
).run()
