"""Building an index, keeping it up to date: embed what is new or changed, keep the rest, drop what is gone.

Every run is the same run: shards already there, finished or interrupted, whole or damaged, are read for the
pictures that can be trusted in them, and only the others are embedded. The catalogue is replaced at the end:
until then the index stays searchable as it was.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tercet.errors import (
    IndexDamaged,
    IndexMismatch,
    InferenceError,
    InputError,
    TercetError,
)
from tercet.index import proposals, storage
from tercet.index.kinds import Choice, Kind, choose_kind, machine_memory
from tercet.index.sources import PictureFile, SkippedPicture, Source, list_pictures
from tercet.index.storage import Catalogue, RecoveredShard, ShardRecord, ShardWriter

SHARD_SIZE = 2**15
"""Pictures a shard: fewer, and the vectors of what is proposed lie in too many files to gather quickly."""
UNIT_TOLERANCE = 0.01
"""How far from 1 an embedding's length may be: half precision is within 0.001."""

REFUSALS_IN_A_ROW = 16
"""So many pictures refused by the model one after the other are the server's fault, not the pictures'."""


class HasEncoderFingerprint(Protocol):
    """What building needs of a lineup."""

    @property
    def encoder_fingerprint(self) -> str:
        """Identifies the networks and preprocessing that the embeddings come from."""


class Encoder(Protocol):
    """What building needs of `tercet.Client`; anything else with these two methods will do."""

    def lineup(self) -> HasEncoderFingerprint:
        """What the server serves."""

    def embed_images_iter(
        self, images: Iterable[Path]
    ) -> Iterator[NDArray[np.float32] | InputError | InferenceError]:
        """Per picture, in order, its unit vector [D], what is wrong with it or how the model failed."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: pictures embedded or skipped, or vectors in the graph or codes, of `total`."""

    step: str
    done: int
    total: int
    skipped: int


@dataclass(frozen=True)
class IndexReport:
    """What a build did. `kept` pictures were there already, `removed` ones have left the gallery.

    `kind` is how the index is searched, and `reason` why so.
    """

    index: Path
    kind: Kind
    reason: str
    pictures: int
    embedded: int
    kept: int
    removed: int
    skipped: tuple[SkippedPicture, ...]
    seconds: float

    def __str__(self) -> str:
        rate = f", {self.embedded / self.seconds:,.0f} a second" if self.embedded else ""
        return (
            f"{self.pictures:,} pictures in {self.index}: {self.embedded:,} embedded, {self.kept:,} kept, "
            f"{self.removed:,} removed, {len(self.skipped):,} skipped; {self.seconds:.1f} s{rate}\n"
            f"Search is {self.kind}: {self.reason}"
        )


def build_index(
    source: Source,
    path: str | os.PathLike[str],
    client: Encoder,
    *,
    kind: Kind | Literal["auto"] | None = None,
    rebuild: bool = False,
    shard_size: int = SHARD_SIZE,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> IndexReport:
    """Make the index at `path` hold the pictures of `source`: build it, resume a killed run, or update it.

    Args:
        source: a folder, a text file with one path a line, `-` for such a list on standard input, or paths.
        path: the index, a folder; created if missing.
        client: embeds the pictures, normally a `tercet.Client`.
        kind: how to search: "exact"; "quantised" for codes in memory, D/8 bytes a picture, that propose what
            is compared exactly; "hnsw" for a graph that does, built in memory, 4 D + 300 bytes a picture, and
            from scratch whenever the pictures change; "auto" for what fits size, dimension and memory. None:
            what was asked for last, "auto" if new.
        rebuild: embed everything again, also with another encoder; the old index stays until the new is done.
        shard_size: pictures a shard.
        on_progress: called after every picture.

    Raises:
        InputError: the source is missing, empty, or none of its pictures can be read.
        IndexMismatch: the index was built by another encoder.
        GalleryIndexError: another process is writing, the folder is no index, or the disk refuses.
        ServerError: the server failed. What was embedded is kept, and the same call goes on from there.
    """
    started = time.monotonic()
    index = Path(path)
    report_progress = on_progress or (lambda progress: None)
    encoder_fingerprint = client.lineup().encoder_fingerprint
    listing = list_pictures(source)
    with storage.writing(index):
        old = _old_catalogue(index)
        wanted = {picture.name: picture for picture in listing.pictures}
        shards = _usable_shards(index, old, encoder_fingerprint, rebuild, wanted)
        live = _live_rows(shards, wanted)
        kept = sum(len(rows) for rows in live)
        have = {shard.pictures[row] for shard, rows in zip(shards, live, strict=True) for row in rows}
        known = [picture for picture in storage.read_skipped(index) if picture.final and not rebuild]
        skipped = [picture for picture in known if wanted.get(picture.name) == _file_of(picture)]
        passed = have | {_file_of(picture) for picture in skipped}
        missing = [picture for picture in listing.pictures if picture not in passed]
        skipped += listing.skipped
        writer = ShardWriter(index, encoder_fingerprint, shard_size)
        try:
            with writer:
                embedded = _embed(client, listing.root, missing, writer, skipped, report_progress)
        except (TercetError, KeyboardInterrupt) as error:
            error.add_note(
                f"Everything embedded so far is kept in {index}: run the same command again to go on."
            )
            raise
        finally:
            storage.write_skipped(index, skipped)
        if kept + embedded == 0:
            raise InputError(
                f"none of the {len(skipped)} pictures can be used, the first because: {skipped[0].name}: "
                f"{skipped[0].reason} (all in {index / storage.SKIPPED})"
            )
        records, dimension = _pack(
            index, shards + _recover(index, writer.names, wanted), wanted, encoder_fingerprint, shard_size
        )
        asked = kind or (old.asked if old else "auto")
        chosen = _chosen(asked, kept + embedded, dimension)
        graph, codes = None, []
        if chosen.kind == "hnsw":
            before = [old.graph] if old and old.graph else []
            graph = proposals.build_graph(
                index, records, dimension, before, _step("graph", kept + embedded, report_progress)
            )
        elif chosen.kind == "quantised":
            codes = proposals.build_codes(
                index,
                records,
                dimension,
                old.codes if old else (),
                _step("codes", kept + embedded, report_progress),
            )
        catalogue = Catalogue(
            encoder_fingerprint, dimension, str(listing.root), tuple(records), graph, tuple(codes), asked
        )
        storage.write_catalogue(index, catalogue)
        _sweep(index, catalogue)
    gone = {picture.name for shard in shards for picture in shard.pictures if picture} - wanted.keys()
    return IndexReport(
        index,
        chosen.kind,
        chosen.reason,
        kept + embedded,
        embedded,
        kept,
        len(gone),
        tuple(skipped),
        time.monotonic() - started,
    )


def _file_of(skipped: SkippedPicture) -> PictureFile:
    return PictureFile(skipped.name, skipped.size, skipped.mtime_ns)


def _old_catalogue(index: Path) -> Catalogue | None:
    try:
        return storage.read_catalogue(index)
    except IndexDamaged:
        # The shards tell what they hold without it.
        return None


def _usable_shards(
    index: Path,
    old: Catalogue | None,
    encoder_fingerprint: str,
    rebuild: bool,
    wanted: dict[str, PictureFile],
) -> list[RecoveredShard]:
    """The shards of this encoder; for a rebuild only those of an interrupted run, not in the catalogue."""
    finished = {record.name for record in old.shards} if old else set()
    names = [name for name in storage.shard_names(index) if not (rebuild and name in finished)]
    shards = _recover(index, names, wanted)
    foreign = {shard.encoder_fingerprint for shard in shards} - {encoder_fingerprint}
    if old and old.encoder_fingerprint != encoder_fingerprint:
        foreign = {old.encoder_fingerprint}
    elif old:
        # What an interrupted rebuild with another encoder left; this run's commit sweeps it away.
        foreign = set()
    if foreign and not rebuild:
        raise IndexMismatch(
            f"{index} was built by encoder {min(foreign)[:12]}, the server runs encoder "
            f"{encoder_fingerprint[:12]}: serve the lineup it was built with, choose another --output, or "
            "embed everything again with --rebuild"
        )
    return [shard for shard in shards if shard.encoder_fingerprint == encoder_fingerprint]


def _recover(index: Path, names: Iterable[str], wanted: dict[str, PictureFile]) -> list[RecoveredShard]:
    shards = []
    for name in names:
        shard = storage.recover_shard(index, name)
        if shard is not None:
            # The listing's own entries where they are the same: a million twice are 200 MB.
            pictures = [
                listed if picture and (listed := wanted.get(picture.name)) == picture else picture
                for picture in shard.pictures
            ]
            shards.append(replace(shard, pictures=pictures))
    return shards


def _live_rows(shards: Sequence[RecoveredShard], wanted: dict[str, PictureFile]) -> list[list[int]]:
    """Per shard, the rows of pictures that are in the gallery unchanged, each picture once."""
    seen: set[str] = set()
    live = []
    for shard in shards:
        rows = []
        for row, picture in enumerate(shard.pictures):
            if picture is not None and wanted.get(picture.name) == picture and picture.name not in seen:
                seen.add(picture.name)
                rows.append(row)
        live.append(rows)
    return live


def _embed(
    client: Encoder,
    root: Path,
    pictures: Sequence[PictureFile],
    writer: ShardWriter,
    skipped: list[SkippedPicture],
    on_progress: Callable[[BuildProgress], None],
) -> int:
    """Embed `pictures` into `writer`, add the others to `skipped`; return how many were embedded."""
    embedded = refusals = 0
    results = client.embed_images_iter(root / picture.name for picture in pictures)
    for done, (picture, result) in enumerate(zip(pictures, results, strict=True), start=1):
        reason = None
        refusals = refusals + 1 if isinstance(result, InferenceError) else 0
        if isinstance(result, InferenceError) and refusals == REFUSALS_IN_A_ROW:
            raise result
        if isinstance(result, TercetError):
            # The message begins with the file's path, the list of skipped files has it already.
            reason = str(result).removeprefix(f"{root / picture.name}: ")
            final = isinstance(result, InputError)
        elif not abs(float(np.linalg.norm(result)) - 1) < UNIT_TOLERANCE:
            reason, final = "the encoder gave no unit-length embedding", False
        else:
            writer.append(picture, result)
            embedded += 1
        if reason is not None:
            skipped.append(SkippedPicture(picture.name, picture.size, picture.mtime_ns, reason, final))
        on_progress(BuildProgress("embedding", done, len(pictures), done - embedded))
    return embedded


def _pack(
    index: Path,
    shards: Sequence[RecoveredShard],
    wanted: dict[str, PictureFile],
    encoder_fingerprint: str,
    shard_size: int,
) -> tuple[list[ShardRecord], int]:
    """Records of shards that hold every live picture once and nothing else, and the vectors' dimension.

    Full shards stay as they are, the live rows of the others are copied together into new ones.

    Raises:
        IndexMismatch: the encoder's vectors have more than one dimension.
    """
    dimensions = {shard.dimension for shard in shards}
    if len(dimensions) > 1:
        raise IndexMismatch(
            f"embeddings of one encoder have {' and '.join(map(str, sorted(dimensions)))} dimensions; "
            "the server's lineup is inconsistent: export it again, then use --rebuild"
        )
    live = _live_rows(shards, wanted)
    whole = [
        shard.clean and len(rows) == len(shard.pictures) for shard, rows in zip(shards, live, strict=True)
    ]
    stay = [good and len(shard.pictures) >= shard_size for good, shard in zip(whole, shards, strict=True)]
    loose = [number for number, rows in enumerate(live) if rows and not stay[number]]
    if len(loose) == 1 and whole[loose[0]]:
        stay[loose[0]] = True
        loose = []
    with ShardWriter(index, encoder_fingerprint, shard_size) as writer:
        for number in loose:
            shard = shards[number]
            vectors = storage.map_vectors(index, shard.name, shard.dimension)
            for row in live[number]:
                picture = shard.pictures[row]
                assert picture is not None
                writer.append(picture, vectors[row])
    final = [shard for shard, stays in zip(shards, stay, strict=True) if stays] + _recover(
        index, writer.names, wanted
    )
    return [storage.record_shard(index, shard) for shard in final], dimensions.pop()


def _chosen(asked: Kind | Literal["auto"], pictures: int, dimension: int) -> Choice:
    if asked == "auto":
        return choose_kind(pictures, dimension, machine_memory())
    return Choice(asked, "as asked for")


def _step(step: str, total: int, on_progress: Callable[[BuildProgress], None]) -> Callable[[int], None]:
    return lambda done: on_progress(BuildProgress(step, done, total, 0))


def _sweep(index: Path, catalogue: Catalogue) -> None:
    """Delete what the catalogue no longer names; a search that has it open keeps it."""
    names = {record.name for record in catalogue.shards}
    proposers = {record.file for record in (catalogue.graph, *catalogue.codes) if record}
    files = [
        path
        for path in (index / storage.SHARDS).iterdir()
        if path.stem.isdecimal() and path.stem not in names
    ]
    files += [
        path for kind in ("graph", "codes") for path in index.glob(f"{kind}-*") if path.name not in proposers
    ]
    for path in files:
        path.unlink()
