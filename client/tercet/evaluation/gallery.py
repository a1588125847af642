"""A data set's candidates, embedded once and kept: a memory-mapped matrix that a killed run fills further."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.client import Client
from tercet.errors import DatasetError, InferenceError, InputError, PictureError
from tercet.evaluation.cache import key_of
from tercet.evaluation.values import PictureSource
from tercet.lineup import Lineup
from tercet.pictures import Picture

__all__ = ["embed_gallery", "encoder_key", "picture_key"]

UNIT_TOLERANCE = 0.01
"""How far from 1 the length of a row may be; what was never written, or half, is farther."""

NAMED = 5
"""Pictures that an error names; it counts all."""


def picture_key(source: PictureSource) -> str:
    """Names a picture as it is now: file, size, time of change, and what is done to it.

    Raises:
        DatasetError: the file is gone.
    """
    try:
        status = source.path.stat()
    except OSError as error:
        raise DatasetError(f"{source.path} cannot be read ({error.strerror}); restore the file") from error
    return f"{source.path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{source.treatment!r}"


def encoder_key(lineup: Lineup) -> str:
    """Names what embeds: the encoder, and the engines that run it, which round otherwise."""
    engines = sorted((role, engine) for role, engine in lineup.engines.items() if role.startswith("clip_"))
    return f"{lineup.encoder_fingerprint}|{engines}"


def embed_gallery(
    names: Sequence[str],
    pictures: Mapping[str, PictureSource],
    client: Client,
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """The unit-length embeddings of `names`, f32 [N, D], read-only, memory-mapped from a file in `folder`.

    The file is named by the encoder, its engine and the pictures; what an earlier run has put into it is
    not embedded again.

    Raises:
        DatasetError: pictures cannot be used: the first few are named, all counted. The others are kept.
        ServerError: the server failed; the same call goes on from there.
    """
    lineup = client.lineup()
    encoder = encoder_key(lineup)
    key = key_of(encoder, *(picture_key(pictures[name]) for name in names))
    path = folder / f"gallery-{key[:32]}.npy"
    shape = (len(names), lineup.embedding_dimension)
    rows = _open(path, shape)
    missing = np.flatnonzero(~_whole(rows))
    done = len(names) - len(missing)
    on_progress(done, len(names))

    untreatable: dict[int, PictureError] = {}

    def given() -> Iterator[Picture]:
        for row in missing:
            source = pictures[names[row]]
            try:
                yield source.path if source.treatment is None else source.encoded()
            except PictureError as error:
                untreatable[row] = error
                yield b""  # refused like any picture that is none, in its place

    failed: list[str] = []
    for row, result in zip(missing, client.embed_images_iter(given()), strict=True):
        if isinstance(result, InputError | InferenceError):
            failed.append(f"{names[row]} ({untreatable.get(row, result)})")
        else:
            rows[row] = result
        done += 1
        on_progress(done, len(names))
    rows.flush()
    if failed:
        raise DatasetError(
            f"{len(failed):,} of {len(names):,} candidates cannot be embedded, and a smaller gallery would "
            f"give other numbers: {'; '.join(failed[:NAMED])}{' ...' if len(failed) > NAMED else ''}. "
            "Restore these files and run again; the others are kept"
        )
    if not (good := _whole(rows)).all():
        raise DatasetError(f"the encoder gives no unit-length embedding of {names[int(np.argmin(good))]}")
    del rows
    return np.load(path, mmap_mode="r")


def _open(path: Path, shape: tuple[int, int]) -> np.memmap:
    """The matrix in `path`, writable; a new one of NaN where there is none of this shape."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r+")
        if rows.shape == shape and rows.dtype == np.float32:
            return rows
    except (OSError, ValueError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, shape[0], 4096):
        rows[start : start + 4096] = np.nan
    rows.flush()
    unfinished.replace(path)
    return rows


def _whole(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows hold an embedding, bool [N]."""
    whole = np.empty(len(rows), bool)
    for start in range(0, len(rows), 4096):
        lengths = np.linalg.norm(rows[start : start + 4096], axis=1)
        whole[start : start + 4096] = np.abs(lengths - 1) < UNIT_TOLERANCE
    return whole
