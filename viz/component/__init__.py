"""Views that the browser draws by itself: all heads of a model, and one head on its tokens.

Plain JavaScript on a canvas, without a build step or a library. The dashboard mounts them; in a
notebook and in files they are HTML that needs nothing else.
"""
