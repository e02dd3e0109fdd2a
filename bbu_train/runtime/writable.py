"""Whether a folder can be made or written, before hours of work are spent on what it shall hold."""

import os
from pathlib import Path

from bbu_train.errors import InputError


def require_writable(key: str, folder: Path) -> None:
    """Raise InputError if `folder`, the value of `key`, is a file or below one, or if nothing may be written there."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        what = "a link to nothing" if there.is_symlink() and not there.exists() else "not a folder"
        raise InputError(f"{key}={folder}: {there} is {what}. Give a folder, existing or new: {key}=...")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{key}={folder}: you may not write into {there}. Give another folder: {key}=...")
