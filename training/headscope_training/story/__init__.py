"""`headscope/bundled`: a Llama of text that the task generators make."""
