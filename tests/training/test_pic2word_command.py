"""`tercet-train pic2word` from its command line: every kind of source, with what is wrong in them, and every
error's cure.
"""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from tercet.errors import InputError, PictureError
from tercet_export.registry import network
from tercet_training.cli import app
from tercet_training.pic2word.sources import Arrays, Names, Shards, expand, open_source
from tests.tiny_pic2word import write_clip, write_pictures


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, and 24 pictures as a folder, a table and three shards, the sixth damaged everywhere."""
    folder = tmp_path_factory.mktemp("pic2word")
    write_clip(folder)
    paths = write_pictures(folder / "pictures" / "more", 24)
    paths[5].write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    write_table(
        folder / "pictures.tsv", ["filepath", "title"], [[f"more/{p.name}", 'a "star"'] for p in paths]
    )
    for shard in range(3):
        write_shard(folder / f"shards/{shard:02d}.tar", paths[8 * shard : 8 * shard + 8])
    return folder


def write_table(path: Path, header: list[str], rows: list[list[str]], delimiter: str = "\t") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def write_shard(path: Path, pictures: list[Path]) -> None:
    """As webdataset's and img2dataset's: a sample's files follow one another."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for picture in pictures:
            for suffix, content in (
                (".png", picture.read_bytes()),
                (".json", b"{}"),
                (".txt", b"a star"),
                (".seg.png", b"another picture of the same sample"),
            ):
                member = tarfile.TarInfo(f"{picture.stem}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def command(place: Path, output: Path, *more: object) -> tuple[int, str]:
    """Exit code and output, in one line, of a run with few, small steps."""
    options = {
        "--clip": place / "clip.safetensors",
        "--arch": place / "clip.json",
        "--tokenizer": place / "merges.txt",
        "--output": output,
        "--epochs": 2,
        "--batch": 6,
        "--middle": 8,
        "--held-out": 4,
        "--workers": 0,
        "--device": "cpu",
    }
    flags = [value for value in more if value == "--resume"]
    pairs = [value for value in more if value not in flags]
    given = dict(zip(pairs[::2], pairs[1::2], strict=True))
    flat = [str(part) for pair in {**options, **given}.items() for part in pair]
    result = CliRunner().invoke(app, ["pic2word", *flat, *map(str, flags)])
    return result.exit_code, re.sub(r"\s+", " ", result.output)


SOURCES = {
    "folder": ("pictures", "more/0005.png"),
    "table": ("pictures.tsv", "more/0005.png"),
    "shards": ("shards/{00..02}.tar", "00.tar:0005.png"),
    "pattern": ("shards/*.tar", "00.tar:0005.png"),
    "folder of shards": ("shards", "00.tar:0005.png"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_trains_and_names_what_it_skips(kind: str, place: Path, tmp_path: Path) -> None:
    data, unreadable = SOURCES[kind]
    more = ["--image-root", place / "pictures"] if kind == "table" else []
    code, said = command(place, tmp_path, "--data", place / data, *more)
    assert code == 0, said
    assert "24 pictures, 4 held out" in said
    assert "1 unreadable pictures were skipped" in said
    (line,) = (tmp_path / "unreadable.tsv").read_text().splitlines()
    name, reason = line.split("\t")
    assert name.endswith(unreadable)
    assert "Error: " in reason or "no picture" in reason
    assert "tercet-export network pic2word --checkpoint" in said
    assert network("pic2word").load(tmp_path / "epoch_2.pt").sizes == {"D": 32, "W": 32}


def test_sources_hold_the_same_pictures(place: Path) -> None:
    folder, shards = open_source(str(place / "pictures")), open_source(str(place / "shards"))
    table = open_source(str(place / "pictures.tsv"), root=place / "pictures")
    assert len(folder) == len(shards) == len(table) == 24
    for number in (0, 9, 23):
        pixels = np.asarray(folder.picture(number))
        assert np.array_equal(pixels, np.asarray(shards.picture(number)))
        assert np.array_equal(pixels, np.asarray(table.picture(number)))
    for source in (folder, shards, table):
        with pytest.raises(PictureError, match=r"Error: |no picture"):
            source.picture(5)
        orders = [source.order(np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == list(range(24))
        assert source.digest() != open_source(str(place / "shards" / "01.tar")).digest()


def test_a_truncated_shard_gives_what_it_has(place: Path, tmp_path: Path) -> None:
    whole = (place / "shards" / "01.tar").read_bytes()
    (tmp_path / "01.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "02.tar").write_bytes((place / "shards" / "02.tar").read_bytes())
    source = open_source(str(tmp_path / "{01..02}.tar"))
    assert isinstance(source, Shards)
    assert 8 + 1 <= len(source) < 16
    assert list(source.damaged) == [tmp_path / "01.tar"]
    (tmp_path / "01.tar").write_bytes(whole[: len(whole) // 2 + 700])
    assert list(open_source(str(tmp_path / "{01..02}.tar")).damaged) == [tmp_path / "01.tar"]
    code, said = command(place, tmp_path / "out", "--data", tmp_path / "*.tar", "--batch", 4)
    assert code == 0
    assert "01.tar is damaged, what follows in it is left out" in said


def test_shards_are_mixed_a_few_at_a_time(tmp_path: Path) -> None:
    """Forty shards of one picture: sixteen neighbours in the order come from the same sixteen shards."""
    (picture,) = write_pictures(tmp_path / "pictures", 1)
    for number in range(40):
        write_shard(tmp_path / "shards" / f"{number}.tar", [picture])
    source = open_source(str(tmp_path / "shards"))
    one, other = (source.order(np.random.default_rng(seed)) for seed in (1, 2))
    assert sorted(one) == sorted(other) == list(range(40))
    assert one.tolist() != other.tolist()


def test_names_are_kept_exactly(tmp_path: Path) -> None:
    given = ["a.jpg", "", "über/ß.png", "\udcff.jpg", "z" * 300]
    names = Names(given)
    assert [names[number] for number in range(len(names))] == given
    assert expand("a{08..11}b{1..2}.tar")[:3] == ["a08b1.tar", "a08b2.tar", "a09b1.tar"]
    arrays = Arrays(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    assert np.array_equal(np.asarray(arrays.picture(0)), arrays.pictures[0])


def test_a_table_with_commas_and_its_own_column(place: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ["id", "file"], [["1", "more/0001.png"], ["2", ""]], ",")
    source = open_source(str(tmp_path / "t.csv"), "file", place / "pictures")
    assert len(source) == 1
    assert source.picture(0).size == (48, 56)


@pytest.mark.parametrize(
    ("data", "cure"),
    [
        ("absent", r"there is no .*absent: give a folder"),
        ("absent/*.tar", r"there is no .*absent/\*\.tar"),
        ("empty", "holds no pictures"),
        ("words.tar", r"holds no pictures .*words.tar is no tar file"),
        ("urls.tsv", "has no column 'filepath', it has caption, url: .*--image-column"),
        ("addresses.tsv", "lists addresses, not files: download them"),
        ("elsewhere.tsv", "none of the first 2 pictures .* is there, .*--image-root"),
        ("binary.tsv", "cannot be read"),
    ],
)
def test_data_that_is_none(data: str, cure: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.tar").write_text("words")
    write_table(tmp_path / "urls.tsv", ["caption", "url"], [["a star", "http://x.org/a.jpg"]])
    write_table(tmp_path / "addresses.tsv", ["filepath", "title"], [["http://x.org/a.jpg", "a star"]])
    write_table(tmp_path / "elsewhere.tsv", ["filepath", "title"], [["cc/1.jpg", ""], ["cc/2.jpg", ""]])
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=cure):
        open_source(str(tmp_path / data))


def test_metrics_and_tensorboard(place: Path, tmp_path: Path) -> None:
    code, said = command(
        place, tmp_path, "--data", place / "pictures", "--log-every", 1, "--validate-every-steps", 2
    )
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    validated = [line["step"] for line in lines if "validation_recall@1" in line]
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert validated == [2, 3, 4, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("pic2word/loss")}
    assert shown == pytest.approx(losses)
    assert "pic2word/validation_recall@1" in events.Tags()["scalars"]


def test_resume_and_validation_pictures(place: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "validation", 5, seed=9)
    options = ["--data", place / "pictures", "--validation", tmp_path / "validation"]
    output = tmp_path / "run"
    code, said = command(place, output, *options)
    assert code == 0, said
    assert "24 pictures, 0 held out" in said
    assert "validation_loss" in (output / "metrics.jsonl").read_text()
    assert command(place, output, *options)[0] == 1
    code, said = command(place, output, *options, "--resume")
    assert code == 0, said
    assert "after 8 steps" in said
    code, said = command(place, output, *options, "--batch", 5, "--resume")
    assert code == 1
    assert "batch was 6 and is 5" in said


@pytest.mark.parametrize(
    ("more", "code", "cure"),
    [
        (["--arch", "ViT-B-31"], 1, "error: open_clip has no architecture 'ViT-B-31': give a name such as"),
        (["--arch", "ViT-B-32"], 1, "Check the network and its --arch"),
        (["--clip", "absent.pt"], 1, "there is no checkpoint absent.pt"),
        (["--device", "cuda:31"], 1, "give --device cpu"),
        (["--precision", "int8"], 2, "choose auto, fp32, bf16, fp16"),
        (["--batch", 21], 1, "give more pictures or a smaller --batch"),
        (["--warm-up", 500], 1, "give --warm-up 1, or more --epochs"),
        (["--data", "nowhere"], 1, "there is no nowhere: give a folder"),
        (["--epochs", 0], 2, "greater than or equal to 1"),
    ],
)
def test_errors_say_what_to_do(more: list[object], code: int, cure: str, place: Path, tmp_path: Path) -> None:
    found, said = command(place, tmp_path, "--data", place / "pictures", *more)
    plain = re.sub(r"[│╭╮╰╯─\s]+", " ", said)
    assert found == code, said
    assert cure in plain
    assert "Traceback" not in said


def test_help_teaches() -> None:
    result = CliRunner().invoke(app, ["pic2word", "--help"], env={"COLUMNS": "200"})
    text = re.sub(r"[│\s]+", " ", result.output)
    for part in ("a photo of *", "torchrun --nproc-per-node", "unreadable.tsv", "--resume", "default: 128"):
        assert part in text
