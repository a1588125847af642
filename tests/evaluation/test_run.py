"""Running an evaluation: nothing is asked twice, whatever ends a run; nothing is left out in silence."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tercet import testing
from tercet.client import Client
from tercet.errors import DatasetError, InputError, LineupError, ServerUnreachable
from tercet.evaluation import gallery as gallery_module
from tercet.evaluation.chosen import check_labels, choose, choose_all
from tercet.evaluation.datasets import load_dataset
from tercet.evaluation.run import evaluate
from tercet.evaluation.values import Dataset
from tercet.lineup import parse_lineup
from tests.client.gallery_kit import reading_answer
from tests.evaluation.command import Run
from tests.evaluation.miniatures import Miniature

WAYS = ["caption", "pic2word", "sum", "caption captions=3", "product", "caption increment=true"]


class Watched(Client):
    """A client of a stand-in server that counts every request, and fails after `fail_after` of them."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: Counter[tuple[str, bytes]] = Counter()
        lock = threading.Lock()

        def answer(model: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if model != "describe_lineup":
                with lock:
                    if fail_after is not None and self.asked.total() >= fail_after:
                        raise ServerUnreachable("nobody answers at localhost:8001; start one")
                    self.asked[model, b"".join(testing._raw(inputs[name]) for name in sorted(inputs))] += 1
            return reading_answer(model, inputs)

        super().__init__(transport=testing.FakeTransport(answer), retries=0)


@pytest.fixture
def dataset(miniature: Callable[..., Miniature]) -> Dataset:
    mini = miniature("world")
    return load_dataset("world", mini.root)


def test_no_request_is_made_twice(dataset: Dataset, tmp_path: Path) -> None:
    client = Watched()
    chosen = [choose(words, "world") for words in WAYS]
    runs = evaluate(dataset, client, chosen, tmp_path)
    assert list(runs) == WAYS
    assert client.asked.total() > 100
    assert set(client.asked.values()) == {1}
    again = Watched()
    repeated = evaluate(dataset, again, chosen, tmp_path)
    assert again.asked.total() == 0
    for label, (run,) in runs.items():
        np.testing.assert_array_equal(run.ranking.top, repeated[label][0].ranking.top)
        np.testing.assert_array_equal(run.ranking.scores, repeated[label][0].ranking.scores)


@pytest.mark.parametrize("fail_after", [7, 65, 90])
def test_a_run_that_ended_early_goes_on(dataset: Dataset, tmp_path: Path, fail_after: int) -> None:
    chosen = [choose(words, "world") for words in WAYS]
    failing = Watched(fail_after)
    with pytest.raises(ServerUnreachable):
        evaluate(dataset, failing, chosen, tmp_path / "ended")
    resumed, whole = Watched(), Watched()
    runs = evaluate(dataset, resumed, chosen, tmp_path / "ended")
    expected = evaluate(dataset, whole, chosen, tmp_path / "whole")
    # What was answered is kept, but for pictures whose answers came behind the one that failed.
    assert resumed.asked.total() + fail_after - whole.asked.total() <= (40 if fail_after == 7 else 0)
    for label, (run,) in runs.items():
        np.testing.assert_array_equal(run.ranking.top, expected[label][0].ranking.top)


def test_another_lineup_is_asked_anew(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [choose("caption", "world")]
    evaluate(dataset, Watched(), chosen, tmp_path)
    monkeypatch.setitem(testing.MANIFEST, "fingerprint", "9" * 64)
    other_captioner = Watched()
    evaluate(dataset, other_captioner, chosen, tmp_path)
    models = Counter(model for model, _ in other_captioner.asked)
    assert models["embed_image"] == 0  # the encoder is the same
    assert models["caption_foreground"] > 0


def test_references_that_cannot_be_captioned_are_all_counted(dataset: Dataset, tmp_path: Path) -> None:
    broken = {query.reference for query in dataset.tasks[0].queries[:5]}

    class Picky(Watched):
        def answer(self, need, picture, *, pseudo_token=None):  # type: ignore[no-untyped-def]
            if Path(picture).stem in broken:
                raise InputError(f"{picture}: no")
            return super().answer(need, picture, pseudo_token=pseudo_token)

    with pytest.raises(DatasetError, match=r"\d+ of 12 queries cannot be composed by 'caption'") as raised:
        evaluate(dataset, Picky(), [choose("caption", "world")], tmp_path)
    assert "no" in str(raised.value)


def test_near_duplicates_of_the_reference_can_be_left_out(dataset: Dataset, tmp_path: Path) -> None:
    chosen = [choose(f"text exclude_near_duplicates={limit}", "world") for limit in ("none", "0.5")]
    runs = evaluate(dataset, Watched(), chosen, tmp_path, top=60)
    with_all, without = (run.ranking.top for (run,) in runs.values())
    assert (with_all >= 0).sum() > (without >= 0).sum()


def test_a_server_without_a_needed_role_is_refused_before_anything_runs(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {name: role for name, role in testing.MANIFEST["roles"].items() if name != "image_to_token"}
    monkeypatch.setitem(testing.MANIFEST, "roles", roles)
    client = Watched()
    with pytest.raises(LineupError, match="image_to_token"):
        evaluate(dataset, client, [choose("pic2word", "world")], tmp_path)
    assert client.asked.total() == 0
    chosen, left_out = choose_all("world", client.lineup())
    assert "image_to_token" in left_out["pic2word"]
    assert {"text", "caption"} <= {choice.label for choice in chosen}


def test_memory_does_not_hold_a_second_gallery(dataset: Dataset, tmp_path: Path) -> None:
    task = dataset.tasks[0]
    rows = gallery_module.embed_gallery(list(task.gallery), dataset.pictures, Watched(), tmp_path)
    assert isinstance(rows, np.memmap)


def test_compositions_are_read_as_a_shell_reads_words() -> None:
    choice = choose("caption  background=keep template='{caption}, but {modification}'", "world")
    assert choice.settings.background == "keep"
    assert choice.settings.template == "{caption}, but {modification}"
    assert choose("slerp", "cirr").settings.slerp_alpha == 0.9
    assert choose("slerp slerp_alpha=0.3", "cirr").settings.slerp_alpha == 0.3
    for words, message in {
        "nothing": "no composition 'nothing'",
        "text background=keep": "does not read 'background'",
        "caption background": "has no value",
        "caption background=keep background=keep": "given twice",
        "caption template='{caption}": "close the quote",
        "": "no composition",
    }.items():
        with pytest.raises(InputError, match=message):
            choose(words, "world")
    with pytest.raises(InputError, match="given twice"):
        check_labels([choose("text", "world"), choose("text", "world")])


def test_every_data_set_s_defaults_are_valid() -> None:
    from tercet.evaluation.datasets import DATASETS

    lineup = parse_lineup(testing.answer("describe_lineup", {})["lineup"].item())
    for name in DATASETS:
        chosen, left_out = choose_all(name, lineup)
        assert set(left_out) <= {"rewrite"}
        assert len(chosen) >= 9


# The command line


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tercet.cli.evaluate"], "connect", lambda server: Watched())


def test_check_names_what_is_missing(miniature: Callable[..., Miniature], run: Run, tmp_path: Path) -> None:
    mini = miniature("cirr")
    code, output, _ = run("evaluate", "cirr", "--data", mini.root, "--check")
    assert code == 0
    assert "12 of officially 4,181 queries" in output
    code, output, _ = run("evaluate", "cirr", "--data", tmp_path, "--check")
    assert code == 1
    assert "cap.rc2.val.json" in output


def test_a_missing_picture_ends_it_before_anything_runs(stand_in: None, run: Run, tmp_path: Path) -> None:
    from tests.evaluation.miniatures import write_small_world

    mini = write_small_world(tmp_path / "world")
    next((mini.root / "images").glob("*.jpg")).unlink()
    code, _, errors = run("evaluate", "world", "--data", mini.root)
    assert code == 1
    assert "lacks 1 picture files" in errors


def test_a_corrupt_picture_is_an_error_that_names_it(stand_in: None, run: Run, tmp_path: Path) -> None:
    from tests.evaluation.miniatures import write_small_world

    mini = write_small_world(tmp_path / "world")
    (mini.root / "images" / "00007.jpg").write_bytes(b"no picture")
    code, _, errors = run("evaluate", "world", "--data", mini.root, "--cache", tmp_path / "cache")
    assert code == 1
    assert "1 of 60 candidates cannot be embedded" in errors
    assert "00007" in errors
    Image.new("RGB", (8, 8)).save(mini.root / "images" / "00007.jpg")
    assert run("evaluate", "world", "--data", mini.root, "--cache", tmp_path / "cache")[0] == 0


def test_submissions_are_written_where_only_the_server_knows_the_answers(
    stand_in: None, miniature: Callable[..., Miniature], run: Run, tmp_path: Path
) -> None:
    for name, split, files in (
        ("cirr", "test1", {"cirr-test1-recall.json", "cirr-test1-recall_subset.json"}),
        ("circo", "test", {"circo-test.json"}),
    ):
        code, output, errors = run(
            "evaluate", name, "--data", miniature(name).root, "--split", split, "-c", "text", "-c", "sum",
            "--cache", tmp_path / "cache", "-o", tmp_path / name,
        )  # fmt: skip
        assert code == 0, errors
        for folder in ("1-text", "2-sum"):
            assert {path.name for path in (tmp_path / name / "submissions" / folder).iterdir()} == files
        assert "For the server" in output


def test_all_compositions_at_once_and_a_repeated_run(
    stand_in: None, miniature: Callable[..., Miniature], run: Run, tmp_path: Path
) -> None:
    arguments = (
        "evaluate",
        "world",
        "--data",
        miniature("world").root,
        "-c",
        "all",
        "--cache",
        tmp_path / "c",
    )
    code, output, errors = run(*arguments)
    assert code == 0, errors
    assert "without rewrite" in errors
    assert "caption+pic2word" in output
    assert (tmp_path / "evaluation" / "world-val-fake" / "report.json").exists()
    assert run(*arguments)[1] == output


def test_another_engine_is_asked_anew_and_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [choose("caption", "world")]
    evaluate(dataset, Watched(), chosen, tmp_path)
    monkeypatch.setitem(testing.MANIFEST, "engines", {"captioner": "openvino-bf16"})
    other_captioner = Watched()
    evaluate(dataset, other_captioner, chosen, tmp_path)
    models = Counter(model for model, _ in other_captioner.asked)
    assert models["embed_image"] == 0
    assert models["caption_foreground"] > 0
    monkeypatch.setitem(testing.MANIFEST, "engines", {"clip_image": "openvino-bf16"})
    other_encoder = Watched()
    evaluate(dataset, other_encoder, chosen, tmp_path)
    assert Counter(model for model, _ in other_encoder.asked)["embed_image"] == len(dataset.pictures)
