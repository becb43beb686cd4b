"""Entry of the dashboard: `headscope app RUN` runs this file with the folder as its argument."""

import streamlit as st

from headscope.app.screens import heads

st.set_page_config(page_title="headscope", page_icon="🔬", layout="wide")
st.navigation([st.Page(heads.draw, title="Heads", url_path="heads", default=True)]).run()
