r"""A report's folder is replaced as a whole: after a crash it holds the old report or the new one.

New files are made in `FOLDER/.unfinished`, which is renamed to `FOLDER/.finished` once all are on disk: from
then on the new report counts, and readers look there first. Its files are then moved to their places.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tercet.errors import InputError

__all__ = ["place_of", "replacing"]

UNFINISHED, FINISHED = ".unfinished", ".finished"


@contextmanager
def replacing(folder: Path, old_files: Collection[str] = ()) -> Iterator[Path]:
    """Give an empty folder to write into; what is in it replaces the old files when the block ends.

    `old_files` are what the former report consists of, relative to `folder`; other files are left alone.

    Raises:
        InputError: the disk refuses.
    """
    unfinished, finished = folder / UNFINISHED, folder / FINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _move_out(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        new = [path for path in unfinished.rglob("*") if path.is_file()]
        for path in [*new, unfinished]:
            _sync(path)
        names = {path.relative_to(unfinished).as_posix() for path in new}
        unfinished.rename(finished)
        _sync(folder)
        # Before the new files move: while the old list of files is there, whoever writes next knows of them.
        for name in old_files:
            if name not in names and _is_inside(name):
                (folder / name).unlink(missing_ok=True)
        _move_out(folder)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or folder}: {error.strerror}; make room or allow writing there, "
            "or choose another folder for the report"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def place_of(folder: Path, name: str) -> Path:
    """Where the report's file `name` is, also where a crash kept it from its place."""
    waiting = folder / FINISHED / name
    return waiting if waiting.exists() else folder / name


def _move_out(folder: Path) -> None:
    """Move the files of a finished report to their places, in the order of their names: report.json last."""
    finished = folder / FINISHED
    if not finished.is_dir():
        return
    for path in sorted(finished.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(finished)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
