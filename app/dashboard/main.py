"""Entry of the dashboard: `headscope app RUN` runs this file with the folder as its argument."""

import streamlit as st

from headscope.app.dashboard.screens import heads, timelines

st.set_page_config(page_title="headscope", page_icon="🔬", layout="wide")
series = timelines.started()
st.navigation(
    [
        st.Page(heads.draw, title="Heads", url_path="heads", default=not series),
        st.Page(timelines.draw, title="Timelines", url_path="timelines", default=series),
    ]
).run()
