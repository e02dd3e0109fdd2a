"""Running a trained model on pictures: `python -m bbu_train.predict`, and `bbu_train.load` from Python."""

import os

# Generation runs many small operations per token; threads that spin between them would slow down other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

MAX_NEW_TOKENS = 2048
"""The longest generated answer, in tokens, unless another is given."""
