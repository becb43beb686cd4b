"""What `headscope app` serves: the dashboard, with its scripts compressed and announced."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from headscope.app.dashboard.compressed_scripts import CompressedScripts

# What draws the screen Heads.
EARLY = (
    "BidiComponent", "Button", "ButtonGroup", "Html", "Multiselect", "NumberInput", "PageLink",
    "Selectbox", "TextArea",
)  # fmt: skip

app = st.App(
    Path(__file__).with_name("main.py"),
    middleware=[Middleware(CompressedScripts, early=EARLY)],
)
