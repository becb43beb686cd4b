"""Identify the browsers of the dashboard, so that each finds its own jobs again."""

import hashlib

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

COOKIE = "_streamlit_xsrf"


def visitor() -> str:
    """Return a digest of the token that Streamlit gives a browser; without one, of the session.

    A reload, and another tab of the same browser, are the same visitor.
    """
    token = _token(st.context.cookies.get(COOKIE, ""))
    context = get_script_run_ctx()
    identity = token or (context.session_id.encode() if context is not None else b"")
    return hashlib.sha256(identity).hexdigest()[:16]


def _token(cookie: str) -> bytes:
    """Read the token in the cookie, masked anew in every answer; empty if there is none."""
    try:
        _, mask, masked, _ = cookie.split("|")
        key = bytes.fromhex(mask)
        return bytes(byte ^ key[at % len(key)] for at, byte in enumerate(bytes.fromhex(masked)))
    except (ValueError, ZeroDivisionError):
        return b""
