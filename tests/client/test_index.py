"""Building an index: resume, update, damage, refusal."""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet import testing
from tercet.client import Client
from tercet.errors import (
    GalleryIndexError,
    IndexDamaged,
    IndexMismatch,
    InferenceError,
    InputError,
    ModelMissing,
    ServerUnreachable,
)
from tercet.index import BuildProgress, GalleryIndex, build_index, storage
from tests.client.gallery_kit import CountingClient, vector_of, write_picture, write_pictures


def content(index: Path) -> dict[str, bytes]:
    """Every picture in a saved index with its vector's bytes."""
    loaded = GalleryIndex.load(index)
    vectors = loaded.vectors(np.arange(len(loaded)))
    assert len(set(loaded.names)) == len(loaded)
    return {name: vector.tobytes() for name, vector in zip(loaded.names, vectors, strict=True)}


def expected(gallery: Path, paths: list[Path]) -> dict[str, bytes]:
    """What the index should hold of `paths`."""
    return {str(path.relative_to(gallery)): vector_of(path.read_bytes()).tobytes() for path in paths}


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk thousands of times: no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A folder of 40 pictures."""
    write_pictures(tmp_path / "gallery", 40)
    return tmp_path / "gallery"


def pictures_of(gallery: Path) -> list[Path]:
    return sorted(gallery.rglob("*.png"))


def test_a_folder_becomes_an_index(gallery: Path, tmp_path: Path) -> None:
    seen = []
    report = build_index(
        gallery, tmp_path / "index", CountingClient(), shard_size=16, on_progress=seen.append
    )
    assert (report.pictures, report.embedded, report.kept, report.removed) == (40, 40, 0, 0)
    assert [progress.done for progress in seen] == list(range(1, 41))
    assert content(tmp_path / "index") == expected(gallery, pictures_of(gallery))
    loaded = GalleryIndex.load(tmp_path / "index", encoder_fingerprint="e" * 64)
    assert loaded.names == sorted(loaded.names)
    assert loaded.paths[0] == pictures_of(gallery)[0]
    assert [path.name for path in sorted((tmp_path / "index" / "shards").glob("*.f32"))] == [
        "000001.f32",
        "000002.f32",
        "000003.f32",
    ]


def test_a_second_run_embeds_only_what_is_new_or_changed(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient(), shard_size=16)
    unchanged = CountingClient()
    assert build_index(gallery, index, unchanged, shard_size=16).embedded == 0
    assert unchanged.asked == 0

    paths = pictures_of(gallery)
    paths[3].unlink()
    write_picture(paths[5], 900)
    write_picture(gallery / "added.png", 901)
    client = CountingClient()
    report = build_index(gallery, index, client, shard_size=16)
    assert (report.embedded, report.kept, report.removed, client.asked) == (2, 38, 1, 2)
    assert content(index) == expected(gallery, pictures_of(gallery))
    assert len(list((index / "shards").iterdir())) == 6, "leftover files"


def test_many_small_additions_do_not_leave_many_shards(gallery: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_picture(gallery / f"extra{number}.png", 500 + number)
        build_index(gallery, tmp_path / "index", CountingClient(), shard_size=16)
    assert content(tmp_path / "index") == expected(gallery, pictures_of(gallery))
    assert len(list((tmp_path / "index" / "shards").glob("*.f32"))) == 3


def test_a_moved_gallery_keeps_its_embeddings(gallery: Path, tmp_path: Path) -> None:
    build_index(gallery, tmp_path / "index", CountingClient())
    moved = gallery.rename(tmp_path / "elsewhere")
    assert GalleryIndex.load(tmp_path / "index", root=moved).paths[0].exists()
    assert build_index(moved, tmp_path / "index", CountingClient()).embedded == 0
    assert GalleryIndex.load(tmp_path / "index").paths[0].exists()


def test_unreadable_pictures_are_skipped_listed_and_tried_again_when_they_change(
    gallery: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    (gallery / "empty.jpg").write_bytes(b"")
    (gallery / "text.jpg").write_text("not a picture")
    picture = pictures_of(gallery)[0].read_bytes()
    (gallery / "cut.png").write_bytes(picture[: len(picture) // 2])
    (gallery / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(gallery / "pipe.png")
    (gallery / "loop").symlink_to(gallery, target_is_directory=True)
    (gallery / ".hidden.png").write_bytes(picture)
    report = build_index(gallery, index, CountingClient())
    assert report.embedded == 40
    listed = {
        line["name"]: line["reason"]
        for line in map(json.loads, (index / "skipped.jsonl").read_text().splitlines())
    }
    assert set(listed) == {"empty.jpg", "text.jpg", "cut.png", "dangling.png", "pipe.png"}
    assert "empty" in listed["empty.jpg"]
    assert "regular file" in listed["pipe.png"]

    again = CountingClient()
    assert len(build_index(gallery, index, again).skipped) == 5
    assert again.asked == 0, "a hopeless picture was sent again"
    write_picture(gallery / "cut.png", 700)
    report = build_index(gallery, index, CountingClient())
    assert (report.embedded, len(report.skipped)) == (1, 4)


def test_a_picture_that_turns_bad_leaves_the_index(gallery: Path, tmp_path: Path) -> None:
    build_index(gallery, tmp_path / "index", CountingClient())
    bad = pictures_of(gallery)[7]
    bad.write_bytes(b"")
    report = build_index(gallery, tmp_path / "index", CountingClient())
    assert (report.pictures, len(report.skipped)) == (39, 1)
    assert bad.name not in "".join(GalleryIndex.load(tmp_path / "index").names)


@pytest.mark.parametrize("name", ["naïve çé 日本.png", "line\nbreak.png", "quote'\".png"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "gallery").mkdir()
    write_picture(tmp_path / "gallery" / name, 3)
    build_index(tmp_path / "gallery", tmp_path / "index", CountingClient())
    assert list(GalleryIndex.load(tmp_path / "index").paths) == [(tmp_path / "gallery" / name).resolve()]


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "gallery").mkdir()
    write_picture(tmp_path / "gallery" / name, 3)
    build_index(tmp_path / "gallery", tmp_path / "index", CountingClient())
    assert GalleryIndex.load(tmp_path / "index").paths[0].exists()


def test_a_list_of_paths(gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = pictures_of(gallery)[:3]
    listing = tmp_path / "list.txt"
    listing.write_text(f"{chosen[0]}\n\n{chosen[1].relative_to(tmp_path)}\n{chosen[0]}\ngone.png\n")
    report = build_index(listing, tmp_path / "index", CountingClient())
    assert (report.pictures, [skip.name for skip in report.skipped]) == (2, [str(tmp_path / "gone.png")[1:]])
    assert list(GalleryIndex.load(tmp_path / "index").paths) == chosen[:2]

    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"".join(os.fsencode(p) + b"\n" for p in chosen)))
    )
    assert build_index("-", tmp_path / "index", CountingClient()).embedded == 1
    assert build_index(chosen, tmp_path / "index", CountingClient()).kept == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "cannot read"),
        (lambda folder: folder, "no picture files"),
        (lambda folder: _written(folder / "photo.jpg", b"\xff\xd8\0\0"), "not a list of paths"),
        (lambda folder: _written(folder / "empty.txt", b"\n"), "list of pictures is empty"),
        (lambda folder: _written(folder / "list.txt", b"a.png\n"), "none of the 1 pictures can be used"),
    ],
)
def test_a_source_without_pictures_is_an_error(tmp_path: Path, make: object, message: str) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=message):
        build_index(make(tmp_path / "source"), tmp_path / "index", CountingClient())  # type: ignore[operator]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_an_emptied_gallery_does_not_empty_the_index(gallery: Path, tmp_path: Path) -> None:
    build_index(gallery, tmp_path / "index", CountingClient())
    shutil.rmtree(gallery)
    gallery.mkdir()
    with pytest.raises(InputError):
        build_index(gallery, tmp_path / "index", CountingClient())
    assert len(GalleryIndex.load(tmp_path / "index")) == 40


def test_a_server_that_dies_midway_costs_nothing_done(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with pytest.raises(ServerUnreachable) as caught:
        build_index(gallery, index, CountingClient(fail_after=25), shard_size=8)
    assert "run the same command again" in "".join(caught.value.__notes__)
    with pytest.raises(IndexDamaged, match="not finished"):
        GalleryIndex.load(index)
    client = CountingClient()
    report = build_index(gallery, index, client, shard_size=8)
    assert report.kept >= 20
    assert client.asked == 40 - report.kept
    assert content(index) == expected(gallery, pictures_of(gallery))


def test_a_server_without_the_encoder(gallery: Path, tmp_path: Path) -> None:
    def answer(model: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if model == "embed_image":
            raise ModelMissing("localhost:8001 does not serve 'embed_image'")
        return testing.answer(model, inputs)

    with (
        Client(transport=testing.FakeTransport(answer)) as client,
        pytest.raises(ModelMissing, match="embed_image"),
    ):
        build_index(gallery, tmp_path / "index", client)
    assert build_index(gallery, tmp_path / "index", CountingClient()).embedded == 40


def test_the_old_index_answers_until_an_update_is_done(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient())
    before = content(index)
    for path in pictures_of(gallery)[:20]:
        write_picture(path, 999)
        os.utime(path, ns=(1, 1))
    with pytest.raises(ServerUnreachable):
        build_index(gallery, index, CountingClient(fail_after=5))
    assert content(index) == before


def test_a_build_killed_just_before_its_end(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new shards hold pictures that the old ones still have too."""
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient(), shard_size=16)
    before = content(index)
    pictures_of(gallery)[0].unlink()
    with monkeypatch.context() as killed:
        killed.setattr(storage, "write_catalogue", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(gallery, index, CountingClient(), shard_size=16)
    assert content(index) == before
    client = CountingClient()
    assert build_index(gallery, index, client, shard_size=16).pictures == 39
    assert client.asked == 0
    assert content(index) == expected(gallery, pictures_of(gallery))


@pytest.mark.parametrize("picture", [0, 3, 21, 38])
def test_a_killed_build_goes_on_where_it_was(gallery: Path, tmp_path: Path, picture: int) -> None:
    index = tmp_path / "index"
    command = [sys.executable, "-m", "tests.client.gallery_kit", str(gallery), str(index), "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while picture and int(process.stdout.readline()) < picture:
            pass
        process.send_signal(signal.SIGKILL)
    client = CountingClient()
    report = build_index(gallery, index, client, shard_size=16)
    assert report.kept >= picture, "a picture was embedded twice"
    assert client.asked == 40 - report.kept
    assert content(index) == expected(gallery, pictures_of(gallery))


def test_an_interrupted_shard_torn_anywhere_heals(gallery: Path, tmp_path: Path) -> None:
    """A power cut may lose the end of a file, or leave zeros there."""
    interrupted, index = tmp_path / "interrupted", tmp_path / "index"
    with pytest.raises(ServerUnreachable):
        build_index(gallery, interrupted, CountingClient(fail_after=20), shard_size=8)
    right = expected(gallery, pictures_of(gallery))
    files = [path.relative_to(interrupted) for path in sorted((interrupted / "shards").iterdir())]

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(files), st.floats(0, 1), st.booleans())
    def tear(file: Path, place: float, zeros: bool) -> None:
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(interrupted, index)
        whole = (index / file).read_bytes()
        cut = int(place * len(whole))
        (index / file).write_bytes(whole[:cut] + bytes(zeros * (len(whole) - cut)))
        build_index(gallery, index, CountingClient(), shard_size=8)
        assert content(index) == right

    tear()


def same_json(text: bytes, other: Path) -> bool:
    try:
        return json.loads(text) == json.loads(other.read_bytes())
    except ValueError:
        return False


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_damage_is_noticed_and_healed(gallery: Path, tmp_path: Path, kind: storage.Kind) -> None:
    """A flipped bit, a cut or an excess in any file is an error naming it, and the next build repairs it."""
    sound = tmp_path / "sound"
    build_index(gallery, sound, CountingClient(), kind=kind, shard_size=16)
    right = content(sound)
    files = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.is_file()]
    checked = [file for file in files if file.name not in ("lock", "skipped.jsonl")]
    index = tmp_path / "index"

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(files), st.floats(0, 1, exclude_max=True), st.integers(0, 9))
    def damage(file: Path, place: float, bit: int) -> None:
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(sound, index)
        altered = bytearray((index / file).read_bytes())
        if not altered:
            return
        at = int(place * len(altered))
        if bit == 8:
            del altered[at:]
        elif bit == 9:
            altered += altered[at:] * 3
        else:
            altered[at] ^= 1 << bit
        (index / file).write_bytes(altered)
        # White space in the catalogue means nothing, and skipped.jsonl and lock are not part of the answer.
        if file in checked and (file.suffix != ".json" or not same_json(altered, sound / file)):
            with pytest.raises(IndexDamaged, match=f"{index / file} is damaged.*tercet index"):
                GalleryIndex.load(index)
        else:
            assert content(index) == right
        build_index(gallery, index, CountingClient(), shard_size=16)
        assert content(index) == right

    damage()
    for file in checked:
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(sound, index)
        (index / file).unlink()
        with pytest.raises(
            IndexDamaged, match=str(index / file) if file.name != "index.json" else "not finished"
        ):
            GalleryIndex.load(index)


def test_another_encoder_is_refused_and_rebuild_is_the_cure(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient())
    other = "a" * 64
    with pytest.raises(IndexMismatch, match=r"eeeeeeeeeeee.*aaaaaaaaaaaa"):
        GalleryIndex.load(index, encoder_fingerprint=other)
    with pytest.raises(IndexMismatch, match=r"eeeeeeeeeeee.*aaaaaaaaaaaa.*--rebuild"):
        build_index(gallery, index, CountingClient(fingerprint=other))
    with pytest.raises(ServerUnreachable):
        build_index(gallery, index, CountingClient(fingerprint=other, fail_after=10), rebuild=True)
    assert len(GalleryIndex.load(index, encoder_fingerprint="e" * 64)) == 40, (
        "an unfinished rebuild took the old index"
    )
    client = CountingClient(fingerprint=other)
    report = build_index(gallery, index, client, rebuild=True)
    assert report.kept > 0, "an interrupted rebuild began anew"
    assert client.asked == 40 - report.kept
    GalleryIndex.load(index, encoder_fingerprint=other)


def test_an_unfinished_index_of_another_encoder_is_refused(gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable):
        build_index(gallery, tmp_path / "index", CountingClient(fail_after=10))
    with pytest.raises(IndexMismatch):
        build_index(gallery, tmp_path / "index", CountingClient(fingerprint="a" * 64))


def test_two_builders_at_once_are_refused(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient())
    with (index / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GalleryIndexError, match=f"process {os.getpid()} is writing"):
            build_index(gallery, index, CountingClient())
    build_index(gallery, index, CountingClient())


def test_a_folder_that_is_no_index_is_left_alone(gallery: Path) -> None:
    before = sorted(gallery.rglob("*"))
    with pytest.raises(GalleryIndexError, match="is no index"):
        build_index(gallery, gallery, CountingClient())
    with pytest.raises(GalleryIndexError, match="is no index"):
        build_index(gallery, pictures_of(gallery)[0], CountingClient())
    assert sorted(gallery.rglob("*")) == before


def test_a_newer_format_is_refused_not_rebuilt(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(storage, "FORMAT", 2)
        build_index(gallery, tmp_path / "index", CountingClient())
    with pytest.raises(GalleryIndexError, match="format 2"):
        build_index(gallery, tmp_path / "index", CountingClient())
    with pytest.raises(GalleryIndexError, match="format 2"):
        GalleryIndex.load(tmp_path / "index")


def test_a_full_disk_is_one_clear_error(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(storage, "_write_whole", full)
        with pytest.raises(GalleryIndexError, match="No space left"):
            build_index(gallery, tmp_path / "index", CountingClient())
    build_index(gallery, tmp_path / "index", CountingClient())
    assert content(tmp_path / "index") == expected(gallery, pictures_of(gallery))


def test_pictures_that_the_model_fails_on(gallery: Path, tmp_path: Path) -> None:
    """One is skipped and tried again next time; many in a row are the server's fault."""

    class Failing(CountingClient):
        def __init__(self, failures: set[int]) -> None:
            super().__init__()
            self.failures = failures

        def embed_images_iter(self, images):  # type: ignore[no-untyped-def]
            for number, vector in enumerate(super().embed_images_iter(images)):
                yield InferenceError(f"no memory for {number}") if number in self.failures else vector

    index = tmp_path / "index"
    with pytest.raises(InferenceError, match="no memory for 25"):
        build_index(gallery, index, Failing(set(range(10, 40))))
    report = build_index(gallery, index, Failing({3, 7}))
    assert (report.kept, len(report.skipped)) == (10, 2)
    assert build_index(gallery, index, CountingClient()).embedded == 2


def test_embeddings_that_are_no_unit_vectors_are_not_indexed(gallery: Path, tmp_path: Path) -> None:
    class Faulty(CountingClient):
        def embed_images_iter(self, images):  # type: ignore[no-untyped-def]
            for number, vector in enumerate(super().embed_images_iter(images)):
                yield vector if number % 2 else vector * (np.nan if number % 4 else 2)

    report = build_index(gallery, tmp_path / "index", Faulty())
    assert (report.pictures, len(report.skipped)) == (20, 20)
    assert build_index(gallery, tmp_path / "index", CountingClient()).pictures == 40


def test_the_graph_is_kept_while_the_pictures_are(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    steps = []
    build_index(gallery, index, CountingClient(), kind="hnsw")
    build_index(gallery, index, CountingClient(), on_progress=steps.append)
    assert not steps, "the graph was built again"
    assert GalleryIndex.load(index).kind == "hnsw"
    write_picture(gallery / "new.png", 800)
    build_index(gallery, index, CountingClient(), on_progress=steps.append)
    assert {progress.step for progress in steps} == {"embedding", "graph"}
    assert len(list(index.glob("graph-*"))) == 1
    build_index(gallery, index, CountingClient(), kind="exact")
    assert not list(index.glob("graph-*"))
    assert GalleryIndex.load(index).kind == "exact"


def test_the_kind_of_search_stays_as_asked_for(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    report = build_index(gallery, index, CountingClient())
    assert (report.kind, GalleryIndex.load(index).kind) == ("exact", "exact")
    assert report.reason.startswith("40 vectors of ")
    assert f"Search is exact: {report.reason}" in str(report)
    report = build_index(gallery, index, CountingClient(), kind="quantised")
    assert (report.kind, report.reason, report.embedded) == ("quantised", "as asked for", 0)
    codes = list(index.glob("codes-*"))
    assert len(codes) == 1
    steps: list[BuildProgress] = []
    assert build_index(gallery, index, CountingClient(), on_progress=steps.append).kind == "quantised"
    assert not steps, "the codes were made again"
    write_picture(gallery / "new.png", 800)
    build_index(gallery, index, CountingClient(), on_progress=steps.append)
    assert {progress.step for progress in steps} == {"embedding", "codes"}
    assert GalleryIndex.load(index).kind == "quantised"
    assert list(index.glob("codes-*")) != codes
    assert build_index(gallery, index, CountingClient(), kind="auto").kind == "exact"
    assert not list(index.glob("codes-*"))
    assert build_index(gallery, index, CountingClient()).kind == "exact"


def test_catalogues_of_before_kinds_were_chosen_are_read(gallery: Path, tmp_path: Path) -> None:
    for kind, asked in (("exact", "auto"), ("hnsw", "hnsw")):
        index = tmp_path / kind
        build_index(gallery, index, CountingClient(), kind=kind)
        body = json.loads((index / storage.CATALOGUE).read_bytes())
        for added in ("codes", "asked", "sha256"):
            del body[added]
        body["sha256"] = storage._body_sha256(body)
        (index / storage.CATALOGUE).write_text(json.dumps(body))
        catalogue = storage.read_catalogue(index)
        assert (catalogue.kind, catalogue.codes, catalogue.asked) == (kind, (), asked)
        assert build_index(gallery, index, CountingClient()).kind == kind


def test_damaged_codes_are_noticed_and_made_again(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient(), kind="quantised")
    codes = next(index.glob("codes-*"))
    codes.write_bytes(codes.read_bytes()[:-9])
    with pytest.raises(IndexDamaged, match="codes-"):
        GalleryIndex.load(index)
    with pytest.raises(IndexDamaged, match="codes-"):
        GalleryIndex.load(index, verify=False)
    build_index(gallery, index, CountingClient())
    assert GalleryIndex.load(index).kind == "quantised"


def test_an_index_can_be_opened_while_it_is_updated(gallery: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(gallery, index, CountingClient(), shard_size=8)
    stop = threading.Event()
    failures: list[BaseException] = []

    def reader() -> None:
        while not stop.is_set():
            try:
                assert len(content(index)) in (39, 40)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=reader)
    thread.start()
    victim = pictures_of(gallery)[2]
    for _ in range(8):
        kept = victim.read_bytes()
        victim.unlink()
        build_index(gallery, index, CountingClient(), shard_size=8)
        victim.write_bytes(kept)
        build_index(gallery, index, CountingClient(), shard_size=8)
    stop.set()
    thread.join()
    assert not failures
