r"""The files of an index, and what makes them survive a kill at any moment and tell when they are damaged.

::

    INDEX/
    ├── index.json        the catalogue: what is in the index; replaced whole and last
    ├── shards/
    │   ├── 000001.f32    float32 vectors one after the other [count, dimension], memory-mapped
    │   └── 000001.jsonl  a header, then a line per vector: its file's name, size and modification time
    ├── graph-<id>.faiss  the HNSW graph, or
    ├── codes-<id>.faiss  the codes of a segment of the shards, if chosen
    ├── skipped.jsonl     files left out, with the reason
    └── lock              held by the one process that may write

A shard only grows, vector first, line second, and every line starts with the CRC-32 of both: whoever reads an
interrupted shard knows which pictures are whole in it. The catalogue holds every file's SHA-256 and its own.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tercet.errors import GalleryIndexError, IndexDamaged
from tercet.index.kinds import Kind
from tercet.index.sources import PictureFile, SkippedPicture

FORMAT = 1
CATALOGUE, SHARDS, SKIPPED, LOCK = "index.json", "shards", "skipped.jsonl", "lock"
SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard in the catalogue."""

    name: str
    count: int
    vectors_sha256: str
    entries_sha256: str


@dataclass(frozen=True)
class ProposerRecord:
    """A graph or a segment of codes in the catalogue; `rows` identifies the shards it was built from."""

    file: str
    sha256: str
    rows: str


@dataclass(frozen=True)
class Catalogue:
    """What is in the index: row r is the r-th vector of the shards in order; names are relative to `root`.

    `asked` is the kind of search that was asked for, which stays when the gallery changes; at most one of
    `graph` and `codes` is there.
    """

    encoder_fingerprint: str
    dimension: int
    root: str
    shards: tuple[ShardRecord, ...]
    graph: ProposerRecord | None = None
    codes: tuple[ProposerRecord, ...] = ()
    asked: Kind | Literal["auto"] = "auto"

    @property
    def kind(self) -> Kind:
        """How the index is searched."""
        return "hnsw" if self.graph else "quantised" if self.codes else "exact"


@dataclass(frozen=True)
class RecoveredShard:
    """What can be trusted of a shard; `pictures[row]` is None where the row is damaged or was not finished.

    `clean`: every row is whole and the files hold nothing else.
    """

    name: str
    encoder_fingerprint: str
    dimension: int
    pictures: list[PictureFile | None]
    clean: bool


# Writing


@contextlib.contextmanager
def writing(index: Path) -> Iterator[None]:
    """Hold the index's lock, creating the folder if need be; turn a failing disk into a clear error.

    Raises:
        GalleryIndexError: another process is writing, the folder holds something else, or the disk refuses.
    """
    try:
        if index.exists() and not is_index(index) and not (index.is_dir() and not any(index.iterdir())):
            raise GalleryIndexError(
                f"{index} is there and is no index; choose a new or empty folder for the index"
            )
        index.mkdir(parents=True, exist_ok=True)
        with (index / LOCK).open("a+") as lock:
            try:
                # The kernel frees the lock when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                writer = lock.read().strip() or "?"
                raise GalleryIndexError(
                    f"process {writer} is writing {index}; wait for it to end, or choose another index"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            (index / SHARDS).mkdir(exist_ok=True)
            yield
    except OSError as error:
        raise GalleryIndexError(
            f"cannot write {error.filename or index}: {error.strerror}; what is done is kept: "
            "make room or allow writing, and run the same command again"
        ) from error


def is_index(path: Path) -> bool:
    """Whether `path` is an index, finished or not."""
    return (path / LOCK).is_file() or (path / CATALOGUE).is_file()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: after a crash it holds the old or the new, whole."""
    unfinished = path.with_name(path.name + ".partial")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Appends pictures to new shards, each of at most `shard_size`.

    What `append` has taken survives a kill at once, and a power cut `SYNC_SECONDS` later. Use it in a `with`.
    """

    def __init__(self, index: Path, encoder_fingerprint: str, shard_size: int) -> None:
        self.names: list[str] = []
        self._index, self._encoder_fingerprint, self._shard_size = index, encoder_fingerprint, shard_size
        self._count = 0
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._synced = time.monotonic()

    def append(self, picture: PictureFile, vector: NDArray[np.float32]) -> None:
        """Add one picture and its vector, f32 [dimension]."""
        if self._count % self._shard_size == 0:
            self.close()
        if self._files is None:
            self._files = self._open(len(vector))
        vectors, entries = self._files
        encoded = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        _write_whole(vectors, encoded)
        entry = {"name": picture.name, "size": picture.size, "mtime_ns": picture.mtime_ns}
        _write_whole(entries, _line(entry, encoded))
        self._count += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Finish the open shard."""
        if self._files is not None:
            with self._files[0], self._files[1]:
                self._sync()
            self._files = None

    def _open(self, dimension: int) -> tuple[BinaryIO, BinaryIO]:
        taken = [int(path.stem) for path in (self._index / SHARDS).iterdir() if path.stem.isdecimal()]
        name = f"{max(taken, default=0) + 1:06d}"
        # Unbuffered: what is written is the kernel's at once, and the kernel outlives this process.
        vectors = vectors_path(self._index, name).open("xb", buffering=0)
        entries = entries_path(self._index, name).open("xb", buffering=0)
        header = {"format": FORMAT, "encoder_fingerprint": self._encoder_fingerprint, "dimension": dimension}
        _write_whole(entries, _line(header))
        self.names.append(name)
        return vectors, entries

    def _sync(self) -> None:
        for file in self._files or ():
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_whole(file: BinaryIO, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _line(value: Mapping[str, object], vector: bytes = b"") -> bytes:
    # ASCII with escapes: file names that are not valid UTF-8 come back as they were.
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text, zlib.crc32(vector)), text)


# Reading


def vectors_path(index: Path, shard: str) -> Path:
    """The file of the shard's vectors."""
    return index / SHARDS / f"{shard}.f32"


def entries_path(index: Path, shard: str) -> Path:
    """The file of the shard's header and entries."""
    return index / SHARDS / f"{shard}.jsonl"


def map_vectors(index: Path, shard: str, dimension: int) -> NDArray[np.float32]:
    """The whole vectors of a shard, f32 [count, dimension], memory-mapped."""
    path = vectors_path(index, shard)
    count = path.stat().st_size // (4 * dimension)
    if count == 0:
        return np.empty((0, dimension), np.float32)
    # A plain array over the mapping: rows of a memmap are slow to take.
    return np.memmap(path, dtype="<f4", mode="r", shape=(count, dimension)).view(np.ndarray)


def recover_shard(index: Path, name: str) -> RecoveredShard | None:
    """Read a shard that may be interrupted or damaged; None where not even its header can be trusted."""
    try:
        lines = entries_path(index, name).read_bytes().split(b"\n")
        header = _parse(lines[0])
        if header is None or header.get("format") != FORMAT:
            return None
        dimension = header["dimension"]
        vectors = map_vectors(index, name, dimension)
        size = vectors_path(index, name).stat().st_size
    except (OSError, KeyError):
        return None
    pictures: list[PictureFile | None] = []
    for row, line in enumerate(lines[1:-1]):
        entry = _parse(line, vectors[row].tobytes()) if row < len(vectors) else None
        pictures.append(None if entry is None else PictureFile(**entry))
    # The last piece is what follows the last line's end: nothing, in a shard that was closed.
    clean = None not in pictures and lines[-1] == b"" and size == 4 * dimension * len(pictures)
    return RecoveredShard(name, header["encoder_fingerprint"], dimension, pictures, clean)


def _parse(line: bytes, vector: bytes = b"") -> dict[str, Any] | None:
    checksum, text = line[:8], line[9:]
    if checksum != b"%08x" % zlib.crc32(text, zlib.crc32(vector)):
        return None
    return json.loads(text)


def read_names(index: Path, record: ShardRecord) -> list[str]:
    """The names of a finished shard's pictures, in row order.

    Raises:
        IndexDamaged: the lines are not what the catalogue says.
    """
    path = entries_path(index, record.name)
    try:
        lines = path.read_bytes().splitlines()[1:]
        names = [entry["name"] for entry in json.loads(b"[" + b",".join(line[9:] for line in lines) + b"]")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from None
    if len(names) != record.count:
        raise damaged(path, f"it lists {len(names)} pictures, the catalogue {record.count}")
    return names


def shard_names(index: Path) -> list[str]:
    """Every shard in the folder, in the catalogue or not, oldest first."""
    return sorted(path.stem for path in (index / SHARDS).glob("*.jsonl") if path.stem.isdecimal())


def record_shard(index: Path, shard: RecoveredShard) -> ShardRecord:
    """The catalogue's record of a clean shard."""
    return ShardRecord(
        shard.name,
        len(shard.pictures),
        file_sha256(vectors_path(index, shard.name)),
        file_sha256(entries_path(index, shard.name)),
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, sha256: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        IndexDamaged: missing, truncated or altered.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise damaged(path, str(error.strerror)) from None
    if found != sha256:
        raise damaged(path, "its SHA-256 is not the one in the catalogue")


def damaged(path: Path, reason: str) -> IndexDamaged:
    """The error for a damaged file of an index."""
    return IndexDamaged(
        f"{path} is damaged: {reason}. Run `tercet index` again with the same gallery and --output: "
        "what is whole is kept, the rest is embedded again"
    )


# The catalogue


def write_catalogue(index: Path, catalogue: Catalogue) -> None:
    """Make `catalogue` the content of the index, at once."""
    body = {"format": FORMAT, **dataclasses.asdict(catalogue)}
    text = json.dumps({**body, "sha256": _body_sha256(body)}, indent=1)
    write_atomically(index / CATALOGUE, text.encode("ascii"))


def read_catalogue(index: Path) -> Catalogue:
    """Read what is in the index.

    Raises:
        IndexDamaged: there is no index, it was never finished, or its catalogue is damaged.
        GalleryIndexError: it is of another Tercet's format.
    """
    path = index / CATALOGUE
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("sha256")
        version = body.pop("format")
    except FileNotFoundError:
        there = "was begun and not finished" if is_index(index) else "is not an index"
        state = there if index.exists() else "does not exist"
        raise IndexDamaged(f"{index} {state}; make one: tercet index FOLDER --output {index}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged(path, str(error)) from None
    if checksum != _body_sha256({"format": version, **body}):
        raise damaged(path, "its content does not match its own SHA-256")
    if version != FORMAT:
        raise GalleryIndexError(
            f"{path} has format {version}, this Tercet reads {FORMAT}; build another index with it"
        )
    shards = tuple(ShardRecord(**shard) for shard in body.pop("shards"))
    graph = body.pop("graph")
    codes = tuple(ProposerRecord(**segment) for segment in body.pop("codes", ()))
    # Catalogues without this come from when a graph was only made where it was asked for.
    asked = body.pop("asked", "hnsw" if graph else "auto")
    return Catalogue(shards=shards, graph=graph and ProposerRecord(**graph), codes=codes, asked=asked, **body)


def _body_sha256(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


# What was left out


def write_skipped(index: Path, skipped: Iterable[SkippedPicture]) -> None:
    """Write the list of skipped files."""
    lines = [json.dumps(dataclasses.asdict(picture)) + "\n" for picture in skipped]
    write_atomically(index / SKIPPED, "".join(lines).encode("ascii"))


def read_skipped(index: Path) -> list[SkippedPicture]:
    """Read the list of skipped files; lines that cannot be read are left out, and their files tried again."""
    skipped = []
    with contextlib.suppress(OSError):
        for line in (index / SKIPPED).read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                skipped.append(SkippedPicture(**json.loads(line)))
    return skipped
