"""The lock of a sweep's ledger."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bbu_train.errors import InputError

LOCK_TIMEOUT_SECONDS = 120  # a submission holds the lock for seconds


def locked(folder: Path) -> FileLock:
    """Return a context manager during which nobody else submits, begins or cancels runs of the ledger in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return _Lock(folder / ".lock", timeout=LOCK_TIMEOUT_SECONDS)


class _Lock(FileLock):
    def acquire(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().acquire(*arguments, **options)
        except Timeout as error:
            raise InputError(
                f"Another command has held {self.lock_file} for over {LOCK_TIMEOUT_SECONDS} s. Try again when it ends."
            ) from error
