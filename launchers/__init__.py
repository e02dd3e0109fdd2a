"""Sweeps: launchers that start their runs, the ledger that records them, and searches that draw them."""
