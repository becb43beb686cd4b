"""Attribution: what an answer draws on, and through which layers and heads."""
