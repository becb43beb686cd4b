"""Attention with capture on a GPU, in Triton: experimental, not yet run on a GPU.

Importing this package needs triton. ``TRITON_INTERPRET=1``, set before the import, runs the kernels
in Triton's interpreter, on the CPU: slow, for tests.
"""

import os

# Triton contracts products and sums by default; 3.10 will not, and 3.9 warns about it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
