"""Sweeps: how their runs are started elsewhere than in one process, and the ledger of what became of them."""
