"""What the tests of index, search and command line share: tiny pictures, a stand-in server that reads them.

Run as `python -m tests.client.gallery_kit FOLDER INDEX SECONDS` it builds an index slowly, to be killed.
"""

import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tercet import testing
from tercet.client import Client
from tercet.errors import PictureError, ServerUnreachable
from tercet.index import build_index, proposals, storage
from tercet.index.sources import PictureFile

DIMENSION = testing.DIMENSION


def write_pictures(folder: Path, count: int, *, start: int = 0) -> list[Path]:
    """Write `count` small PNG pictures, each of another colour, some of them in subfolders."""
    paths = []
    for number in range(start, start + count):
        path = folder / f"part{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, number)
        paths.append(path)
    return sorted(paths)


def write_picture(path: Path, number: int) -> None:
    """Write one picture of the colour that belongs to `number`."""
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path)


def vector_of(content: bytes) -> np.ndarray:
    """The stand-in server's embedding of a picture file, f32 [1, D]."""
    return testing.answer("embed_image", {"image": np.array([[content]], dtype=np.object_)})["embedding"]


def reading_answer(model: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Answer as `tercet.testing` does, but refuse what is not a picture as the server does."""
    if "image" in inputs:
        try:
            Image.open(io.BytesIO(inputs["image"].item())).load()
        except Exception as error:
            raise PictureError(f"not a picture: {error}") from None
    return testing.answer(model, inputs)


def write_index(
    path: Path,
    vectors: np.ndarray,
    *,
    shard_size: int,
    kind: str = "exact",
    segment: int = proposals.SEGMENT,
) -> None:
    """Write `vectors` [N, D] as the index of N pictures that need not exist: `g/0000000.png` and so on."""
    (path / storage.SHARDS).mkdir(parents=True)
    with storage.ShardWriter(path, "e" * 64, shard_size) as writer:
        for number, vector in enumerate(vectors):
            writer.append(PictureFile(f"g/{number:07d}.png", 1, 1), vector)
    shards = [storage.recover_shard(path, name) for name in writer.names]
    records = tuple(storage.record_shard(path, shard) for shard in shards if shard is not None)
    dimension = vectors.shape[1]
    graph, codes = None, []
    if kind == "hnsw":
        graph = proposals.build_graph(path, records, dimension, (), lambda _: None)
    elif kind == "quantised":
        codes = proposals.build_codes(path, records, dimension, (), lambda _: None, segment=segment)
    root = str(path.parent.resolve())
    storage.write_catalogue(path, storage.Catalogue("e" * 64, dimension, root, records, graph, tuple(codes)))


class CountingClient(Client):
    """A client of a stand-in server that counts the pictures it is asked to embed."""

    def __init__(
        self, *, fingerprint: str = "e" * 64, fail_after: int | None = None, seconds: float = 0
    ) -> None:
        self.asked = 0

        def answer(model: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if model == "describe_lineup":
                given = testing.answer(model, inputs)["lineup"].item()
                return {
                    "lineup": np.array([[given.replace(b"e" * 64, fingerprint.encode())]], dtype=np.object_)
                }
            if model == "embed_image":
                self.asked += 1
                time.sleep(seconds)
                if fail_after is not None and self.asked > fail_after:
                    raise ServerUnreachable("nobody answers at localhost:8001; start one with `tercet serve`")
            return reading_answer(model, inputs)

        super().__init__(transport=testing.FakeTransport(answer), retries=0, in_flight=2)


if __name__ == "__main__":
    folder, index, seconds = sys.argv[1:]
    build_index(
        folder,
        index,
        CountingClient(seconds=float(seconds)),
        shard_size=16,
        on_progress=lambda progress: print(progress.done, flush=True),
    )
