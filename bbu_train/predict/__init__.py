"""What a trained model finds in pictures."""

import os

# A token is many small operations: threads that spin while they wait for the next would starve their neighbours.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
