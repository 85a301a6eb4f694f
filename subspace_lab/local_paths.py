"""Names that may be local paths or ids of the Hugging Face hub: which of the two they are."""

from __future__ import annotations

from pathlib import Path

from subspace_lab.errors import UserError, did_you_mean


def refuse_missing_path(name: str) -> None:
    """Refuse a name that is a path to nothing, before the hub is asked for it.

    A hub id is `name` or `owner/name`. A path begins with ".", "/" or "~", has several slashes, or
    begins with a folder that exists here.

    Raises:
        UserError: naming the first part of it that is missing, and the nearest name there.
    """
    path = Path(name).expanduser()
    in_a_folder = "/" in name and Path(path.parts[0]).is_dir()
    if path.exists() or not (name.startswith((".", "~")) or name.count("/") > 1 or in_a_folder):
        return
    missing = next(part for part in (*reversed(path.parents), path) if not part.exists())
    folder = missing.parent
    siblings = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    where = "the current folder" if folder == Path() else folder
    raise UserError(
        f"{name} does not exist: there is no {missing.name} in {where}"
        f"{did_you_mean(missing.name, siblings)}"
    )
