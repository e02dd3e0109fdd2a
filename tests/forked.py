"""Processes for tests that kill their own: forked in milliseconds from a fresh, single-threaded process.

That process has imported what they need. Like a spawned process, they share no thread and no lock with the tests.
"""

import multiprocessing

from bbu_train.tracker.mlflow_store import silence_mlflow

silence_mlflow()  # MLflow reads the environment when the server imports it
processes = multiprocessing.get_context("forkserver")
MLFLOW = ["bbu_train.tracker.mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.tracking.rest_store"]
processes.set_forkserver_preload(["pytest", "bbu_train.checkpoint.local", *MLFLOW])
