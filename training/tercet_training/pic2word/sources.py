"""Where training pictures come from: a folder, a table of paths, webdataset shards, or an array.

Every source gives any picture by its number, so that the order of training can be drawn anew and found again.
Shards are tar files on a disk: they are read through once for where each picture begins.
"""

import csv
import glob
import hashlib
import io
import os
import re
import tarfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tercet.errors import InputError, PictureError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Shards whose pictures are mixed: larger is more random, and reads from more files at a time.
MIXED_SHARDS = 16
LOOKED_AT = 100  # of a table's paths, before it is believed


class Source(ABC):
    """Pictures by number. `read` gives an encoded file; `name` says which one it is."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The picture's file; OSError where it cannot be read."""

    @abstractmethod
    def name(self, number: int) -> str:
        """How a person finds the picture."""

    @abstractmethod
    def digest(self) -> str:
        """Equal where the same pictures have the same numbers, as far as names tell."""

    def picture(self, number: int) -> Image.Image:
        """The picture in RGB; PictureError where it is missing, damaged, or larger than Pillow's limit."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Image.open(io.BytesIO(self.read(number))).convert("RGB")
        except UnidentifiedImageError as error:
            raise PictureError("it is no picture of a known format") from error
        except Exception as error:  # Pillow's decoders raise whatever a damaged file drives them to
            raise PictureError(f"{type(error).__name__}: {error}") from error

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """All numbers in a random order."""
        return rng.permutation(len(self))


class Names(Sequence[str]):
    """Millions of strings in two arrays: worker processes share them, where a list is copied by and by."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.text[start : self.ends[number]].tobytes())


class Files(Source):
    """Picture files of a list."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root, self.names = root, Names(names)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> bytes:
        """The file's content."""
        return (self.root / self.names[number]).read_bytes()

    def name(self, number: int) -> str:
        """Its path."""
        return str(self.root / self.names[number])

    def digest(self) -> str:
        """Of the paths below the root."""
        return hashlib.sha256(self.names.text.tobytes() + self.names.ends.tobytes()).hexdigest()


class Shards(Source):
    """Pictures in tar files, one a sample: `KEY.jpg` beside whatever else the sample has."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.damaged: dict[Path, str] = {}
        entries = [entry for number, path in enumerate(paths) for entry in self._entries(number, path)]
        self.entries = np.array(entries, np.int64).reshape(-1, 4)  # shard, header, start and size of each

    def _entries(self, number: int, path: Path) -> Iterator[tuple[int, int, int, int]]:
        """Where the pictures of one shard are; what follows a damaged place is left out and noted."""
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    suffix = os.path.basename(member.name).partition(".")[2]
                    if member.isfile() and f".{suffix.lower()}" in SUFFIXES:
                        yield number, member.offset, member.offset_data, member.size
                    archive.members = []  # type: ignore[attr-defined]  # or they pile up
                if archive.offset >= path.stat().st_size:
                    self.damaged[path] = "it ends without the mark of a tar file's end"
        except (tarfile.TarError, OSError, EOFError) as error:
            self.damaged[path] = str(error)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, number: int) -> bytes:
        """The member's content."""
        shard, _, start, size = self.entries[number]
        with self.paths[shard].open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise OSError("the shard ends in the middle of this picture")
        return content

    def name(self, number: int) -> str:
        """shard.tar:member.jpg, read again from the shard."""
        shard, header, *_ = self.entries[number]
        with self.paths[shard].open("rb") as file:
            file.seek(header)
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    member = archive.next()
            except tarfile.TarError:
                member = None
        return f"{self.paths[shard]}:{member.name if member else f'byte {header}'}"

    def digest(self) -> str:
        """Of the shards' names and where the pictures are in them."""
        names = "\n".join(path.name for path in self.paths)
        return hashlib.sha256(names.encode() + self.entries.tobytes()).hexdigest()

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Shards in a random order, 16 mixed at a time: disks and network storage read few files at once."""
        place = rng.permutation(len(self.paths))[self.entries[:, 0]] // MIXED_SHARDS
        return np.lexsort((rng.random(len(self)), place))


class Arrays(Source):
    """Decoded pictures, u8 (N, H, W, 3)."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, number: int) -> bytes:
        """Its pixels."""
        return self.pictures[number].tobytes()

    def picture(self, number: int) -> Image.Image:
        """The row as a picture."""
        return Image.fromarray(self.pictures[number])

    def name(self, number: int) -> str:
        """Its row."""
        return f"row {number}"

    def digest(self) -> str:
        """Of the shape and the first row."""
        return hashlib.sha256(repr(self.pictures.shape).encode() + self.read(0)).hexdigest()


def open_source(where: str, column: str = "filepath", root: Path | None = None) -> Source:
    """The pictures that `where` names.

    Args:
        where: a folder with pictures, or with tar files; a .tsv or .csv table; or tar files, as
            `shards/{00000..00331}.tar` or `shards/*.tar`.
        column: of the table, the paths.
        root: what the table's paths are relative to; None is the table's folder.

    Raises:
        InputError: there is nothing there, or no picture in it.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        source = open_folder(path)
    elif path.suffix.lower() in (".tsv", ".csv", ".txt"):
        source = open_table(path, column, root)
    else:
        shards = [Path(name) for name in expand(where)]
        missing = [shard for shard in shards if not shard.is_file()]
        if missing or not shards:
            raise InputError(
                f"there is no {missing[0] if missing else where}: give a folder, a .tsv or .csv table, or "
                "tar files such as 'shards/{00000..00331}.tar' in quotes"
            )
        source = Shards(shards)
    if not len(source):
        damaged = next(iter(source.damaged.items()), None) if isinstance(source, Shards) else None
        raise InputError(
            f"{where} holds no pictures ({', '.join(SUFFIXES)})"
            + (f": {damaged[0]} is no tar file, or a damaged one: {damaged[1]}" if damaged else "")
        )
    return source


def open_folder(folder: Path) -> Source:
    """Every picture below a folder; where it has tar files at its top and no picture, those."""
    found = sorted(
        os.path.relpath(os.path.join(place, file), folder)
        for place, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES)
    )
    shards = sorted(folder.glob("*.tar"))
    return Files(folder, found) if found or not shards else Shards(shards)


def open_table(path: Path, column: str, root: Path | None) -> Source:
    """The paths in a column of a table with a header; it has tabs, or commas where its header has no tab."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter="\t" if "\t" in header else ",")
            if column not in (rows.fieldnames or ()):
                raise InputError(
                    f"{path} has no column {column!r}, it has {', '.join(rows.fieldnames or ('nothing',))}: "
                    "name the one with the paths by --image-column"
                )
            names = [row[column] for row in rows if row[column]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table {path} cannot be read: {error}") from error
    if names and names[0].startswith(("http://", "https://")):
        raise InputError(
            f"{path} lists addresses, not files: download them first, with img2dataset for example"
        )
    base = root or path.parent
    if names and not any((base / name).is_file() for name in names[:LOOKED_AT]):
        raise InputError(
            f"none of the first {len(names[:LOOKED_AT])} pictures of {path} is there, such as "
            f"{base / names[0]}: say by --image-root what its paths are relative to"
        )
    return Files(base, names)


def expand(pattern: str) -> list[str]:
    """`a{00..02}.tar` -> a00.tar, a01.tar, a02.tar; `*` and `?` as in a shell, sorted."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        first, last = found.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return [
            name
            for number in numbers
            for name in expand(pattern[: found.start()] + number + pattern[found.end() :])
        ]
    return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
