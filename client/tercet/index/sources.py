"""Which picture files a gallery consists of: a folder walked, or a list read. No picture is opened here."""

import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tercet.errors import InputError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
)
"""File name endings, in lower case, that a folder walk takes for pictures; a list is taken as it is."""

Source: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A folder, a text file with one path a line, `-` for such a list on standard input, or the paths."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file as it was found, its path relative to the listing's root.

    Size (bytes) and modification time (nanoseconds) tell whether it has changed since.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SkippedPicture:
    """A file that is not in the index, and why. `final`: trying again is useless until the file changes."""

    name: str
    size: int
    mtime_ns: int
    reason: str
    final: bool = True


@dataclass(frozen=True)
class Listing:
    """The files of a gallery, sorted by name, and what cannot be taken."""

    root: Path
    pictures: list[PictureFile]
    skipped: list[SkippedPicture]


def list_pictures(source: Source) -> Listing:
    """List the picture files of `source`.

    A folder is walked whole, and is the root of the names. Hidden files and folders are left out, links to
    files are taken, links to folders are not followed (they may lead in circles). Of a list, every path is
    taken, relative ones from the working directory; the root is `/`.

    Raises:
        InputError: the folder or list is missing, unreadable or holds no picture.
    """
    if isinstance(source, str | os.PathLike) and os.fspath(source) != "-" and Path(source).is_dir():
        listing = _walk(Path(source).resolve())
        what = f"no picture files ({' '.join(sorted(EXTENSIONS))}) in {source}"
    else:
        listing = _inspect(_read_paths(source), Path("/"))
        what = "the list of pictures is empty"
    if not listing.pictures and not listing.skipped:
        raise InputError(f"{what}; nothing to index")
    return listing


def _walk(root: Path) -> Listing:
    unreadable: list[SkippedPicture] = []

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise InputError(f"cannot read folder {root}: {error.strerror}")
        name = Path(error.filename).relative_to(root).as_posix()
        unreadable.append(
            SkippedPicture(name, 0, 0, f"cannot read the folder: {error.strerror}", final=False)
        )

    paths = []
    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [
            os.path.join(folder, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    listing = _inspect(paths, root)
    return Listing(root, listing.pictures, unreadable + listing.skipped)


def _read_paths(source: Source) -> list[str]:
    if not isinstance(source, str | os.PathLike):
        return [os.fspath(path) for path in source]
    if os.fspath(source) == "-":
        content = sys.stdin.buffer.read()
    else:
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read {source}: {error.strerror}; give a folder or a list of pictures"
            ) from None
    if b"\0" in content:
        raise InputError(
            f"{source} is not a list of paths, one a line; give the folder that holds the pictures"
        )
    return [os.fsdecode(line) for line in content.splitlines() if line.strip()]


def _inspect(paths: Iterable[str], root: Path) -> Listing:
    pictures: dict[str, PictureFile] = {}
    skipped: dict[str, SkippedPicture] = {}
    for path in paths:
        absolute = os.path.abspath(path)
        name = os.path.relpath(absolute, root)
        try:
            status = os.stat(absolute)
        except OSError as error:
            skipped[name] = SkippedPicture(name, 0, 0, f"cannot be read: {error.strerror}", final=False)
            continue
        if stat.S_ISREG(status.st_mode):
            pictures[name] = PictureFile(name, status.st_size, status.st_mtime_ns)
        else:
            # A pipe or a device could block for ever.
            skipped[name] = SkippedPicture(name, 0, 0, "is not a regular file", final=False)
    return Listing(
        root, [pictures[name] for name in sorted(pictures)], [skipped[name] for name in sorted(skipped)]
    )
