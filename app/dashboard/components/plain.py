"""Text of prompts, files and links as text, where Streamlit would read it as markdown."""

import re

import streamlit as st

MARKS = re.compile(r"([\\`*_{}\[\]<>#|$~:&!])")
# A word joiner goes in here: Streamlit looks for :names:, :red[text] and addresses after it has
# read the backslashes; and where a list would begin.
PARTED = re.compile(r"(?<=:)(?=[\w/+-]+[:\[{]|//)|(?<=www)(?=\.)|(?=@)|^(?=[-+=]|\d+[.)])")


def plain(text: object) -> str:
    """Keep markdown, HTML, formulas, emoji names and addresses from being read in a text.

    >>> print(plain("a *b* <i>"), plain("![x](y) $z$"))
    a \\*b\\* \\<i\\> \\!\\[x\\](y) \\$z\\$
    """
    return MARKS.sub(r"\\\1", PARTED.sub("\u2060", " ".join(str(text).split())))


def error(refusal: object) -> None:
    """Show a refusal as plain text."""
    st.error(plain(refusal), icon=":material/error:")
