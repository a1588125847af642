"""The synthetic world on disk: written once, completed after a kill, the same for the same arguments."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tercet.errors import InputError
from tercet.evaluation.datasets import check_dataset, load_dataset
from tercet_training.cli import app
from tercet_training.world import make_gallery
from tercet_training.world.dataset import write_world
from tercet_training.world.queries import SETTING


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_the_gallery(tmp_path: Path) -> None:
    gallery = make_gallery(3, 30, 8)
    write_world(tmp_path, gallery, size=64)
    dataset = load_dataset("world", tmp_path)
    (task,) = dataset.tasks
    assert task.exclude_reference
    assert len(task.gallery) == len(dataset.pictures) == 30
    for found, query in zip(task.queries, gallery.queries, strict=True):
        assert int(found.reference) == query.reference
        assert {int(target) for target in found.targets} == query.targets
        assert found.modifications == (query.modification,)
        assert found.aspects == (query.kind,)


def test_a_killed_run_is_completed_and_finished_pictures_are_kept(tmp_path: Path) -> None:
    gallery = make_gallery(3, 30, 8)
    write_world(tmp_path / "whole", gallery, size=64)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 30
        if done == 11:
            raise Killed

    with pytest.raises(Killed):
        write_world(tmp_path / "killed", gallery, size=64, on_progress=kill)
    assert len(check_dataset("world", tmp_path / "killed").missing) == 19
    first = tmp_path / "killed" / "images" / "00000.jpg"
    before = first.stat().st_mtime_ns
    write_world(tmp_path / "killed", gallery, size=64)
    assert first.stat().st_mtime_ns == before
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_another_world_in_the_folder_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path, make_gallery(3, 30, 8), size=64)
    before = content(tmp_path)
    with pytest.raises(InputError, match="has another world"):
        write_world(tmp_path, make_gallery(4, 30, 8), size=64)
    assert content(tmp_path) == before


def test_the_command(tmp_path: Path) -> None:
    arguments = [
        "world",
        str(tmp_path / "a"),
        "--pictures",
        "30",
        "--queries",
        "10",
        "--seed",
        "5",
        "--setting",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "30 pictures and 10 queries" in result.output
    (task,) = load_dataset("world", tmp_path / "a").tasks
    assert len(task.queries) == 10
    assert SETTING in {query.aspects[0] for query in task.queries}
    again = CliRunner().invoke(app, ["world", str(tmp_path / "b"), *arguments[2:]])
    assert again.exit_code == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    too_few = CliRunner().invoke(app, ["world", str(tmp_path / "a"), "--pictures", "5", "--queries", "10"])
    assert too_few.exit_code == 2
    assert "at least" in " ".join(too_few.output.replace("│", " ").split())
    assert not (tmp_path / "a").exists()
    CliRunner().invoke(
        app, ["world", str(tmp_path / "a"), "--pictures", "9", "--queries", "4", "--seed", "1"]
    )
    other = CliRunner().invoke(
        app, ["world", str(tmp_path / "a"), "--pictures", "9", "--queries", "4", "--seed", "2"]
    )
    assert other.exit_code == 2
    assert "another world" in " ".join(other.output.replace("│", " ").split())
