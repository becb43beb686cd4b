"""`headscope/bundled-python`: a GPT-2 of the source of Python's standard library."""
