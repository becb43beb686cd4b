"""What `headscope app` serves: the dashboard, with its scripts compressed."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from headscope.app.dashboard.compressed_scripts import CompressedScripts

app = st.App(Path(__file__).with_name("main.py"), middleware=[Middleware(CompressedScripts)])
