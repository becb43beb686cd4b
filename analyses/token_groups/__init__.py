"""Token groups: attention between documents, roles and kinds of tokens, and how long it lasts."""
