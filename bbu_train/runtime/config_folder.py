"""Where the config files are."""

from pathlib import Path


def config_folder() -> Path:
    """Return conf/: inside the package in an installed wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())
