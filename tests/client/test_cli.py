"""The command line: what it prints where, and its exit codes."""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tercet import cli
from tercet.cli import console
from tercet.compositions import COMPOSITIONS
from tercet.compositions.settings import FIELDS, range_of
from tercet.errors import ServerUnreachable
from tercet.index import GalleryIndex
from tests.client.gallery_kit import CountingClient, write_pictures

Run = Callable[..., tuple[int, str, str]]

BOTH = ["search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t", "x"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in the test's folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TERCET_LLM_MODEL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put a stand-in in the server's place, and give a gallery of 30 pictures."""
    for module in ("index", "search", "caption"):
        monkeypatch.setattr(
            sys.modules[f"tercet.cli.{module}"], "connect", lambda server, in_flight=32: CountingClient()
        )
    write_pictures(tmp_path / "gallery", 30)
    return tmp_path / "gallery"


@pytest.fixture
def indexed(stand_in: Path, run: Run) -> Path:
    assert run("index", "gallery")[0] == 0
    return stand_in


def test_a_connection_keeps_as_many_at_work_as_it_is_told() -> None:
    for given, kept in (((), 32), ((64,), 64)):
        with console.connect("one:1, two:2", *given) as client:
            assert client._in_flight == kept


def test_index_says_what_it_did(stand_in: Path, run: Run) -> None:
    (stand_in / "bad.png").write_text("no picture")
    code, output, errors = run("index", "gallery")
    assert code == 0
    assert "30 pictures in gallery.tercet: 30 embedded, 0 kept, 0 removed, 1 skipped" in output
    assert "skipped bad.png: not a picture" in errors
    code, output, _ = run("index", "gallery/", "--hnsw")
    assert (code, "0 embedded, 30 kept" in output) == (0, True)
    assert "Search is hnsw: as asked for" in output


def test_index_chooses_how_to_search_and_says_why(stand_in: Path, run: Run) -> None:
    assert "Search is exact: 30 vectors of " in run("index", "gallery")[1]
    assert "Search is quantised: as asked for" in run("index", "gallery", "--kind", "quantised")[1]
    assert "Search is quantised: as asked for" in run("index", "gallery")[1]
    assert run("search", "gallery.tercet", "--image", "gallery/part0/0003.png")[0] == 0
    assert "Search is exact: 30 vectors of " in run("index", "gallery", "--kind", "auto")[1]
    code, _, errors = run("index", "gallery", "--kind", "exact", "--hnsw")
    assert (code, "give --kind, --hnsw or --exact" in " ".join(errors.split())) == (2, True)


def test_search_prints_a_table(indexed: Path, run: Run) -> None:
    reference = "gallery/part0/0003.png"
    code, output, errors = run(
        "search", "gallery.tercet", "--image", reference, "--text", "in blue", "-k", "4"
    )
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("Caption   a picture of ")
    assert lines[1] == f"Composed  {lines[0].split('   ')[1]}, in blue"
    assert [line.split()[0] for line in lines[-4:]] == ["1", "2", "3", "4"]
    assert all(Path(line.split()[2]).exists() for line in lines[-4:])


def test_search_by_image_alone_finds_it_first_unless_excluded(indexed: Path, run: Run) -> None:
    copy = indexed / "copy.png"
    copy.write_bytes((indexed / "part0/0003.png").read_bytes())
    assert run("index", "gallery")[0] == 0
    code, output, _ = run("search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-k", "2", "--json")
    answer = json.loads(output)
    assert {Path(result["path"]).name for result in answer["results"]} == {"0003.png", "copy.png"}
    assert answer["results"][0]["score"] == pytest.approx(1)
    assert answer["caption"] is None

    code, output, _ = run(
        "search",
        "gallery.tercet",
        "-i",
        "gallery/part0/0003.png",
        "-k",
        "100",
        "--exclude-reference",
        "--json",
    )
    answer = json.loads(output)
    assert code == 0
    assert {Path(path).name for path in answer["excluded"]} == {"0003.png", "copy.png"}
    assert len(answer["results"]) == 29
    assert [result["rank"] for result in answer["results"]] == list(range(1, 30))


def test_json_is_all_there_is_on_standard_output(indexed: Path, run: Run) -> None:
    reference = "gallery/part0/0003.png"
    code, output, _ = run(
        "search", "gallery.tercet", "-i", reference, "-t", "in blue", "--json", "--sheet", "sheet.png"
    )
    answer = json.loads(output)
    assert code == 0
    assert (answer["image"], answer["text"], answer["caption_cut"]) == (reference, "in blue", False)
    assert answer["composed"] == f"{answer['caption']}, in blue"
    assert Path("sheet.png").stat().st_size > 1000


def test_a_cut_caption_is_said(indexed: Path, run: Run) -> None:
    _, output, _ = run("search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t", "word " * 73)
    assert "the caption is cut" in output


def test_a_search_composes_as_it_is_told(indexed: Path, run: Run) -> None:
    asked = ("search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t", "in blue", "--json")
    client = CountingClient()
    index = GalleryIndex.load("gallery.tercet")
    for name, settings in (
        ("slerp", {"slerp_alpha": 0.25}),
        ("product", {"text_floor": -1.0, "image_floor": -0.5}),
        ("caption", {"increment_negative": 2.0, "exclude_near_duplicates": 1.0}),
    ):
        given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        code, output, errors = run(*asked, "--composition", name, *given)
        assert (code, errors) == (0, "")
        answer = json.loads(output)
        query = client.compose_queries(
            "gallery/part0/0003.png", "in blue", composition=name, settings=settings
        )
        scores, rows = index.search_composed([query], 10)
        assert [result["path"] for result in answer["results"]] == [
            str(index.paths[row]) for row in rows[0].tolist()
        ]
        assert [result["score"] for result in answer["results"]] == scores[0].tolist()
        assert answer["composition"] == name
        assert answer["composed"] == query.composition.text
        itself = "0003.png" in [Path(result["path"]).name for result in answer["results"]]
        assert not (name == "caption" and itself)


def test_a_search_says_what_was_done_to_the_background(indexed: Path, run: Run) -> None:
    asked = ("search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t")
    _, output, _ = run(*asked, "in blue")
    assert "Captioned without its background: the modification does not speak of" in output
    _, output, _ = run(*asked, "in blue, in the same place")
    assert "Captioned with its background: the modification speaks of the reference" in output
    assert '"same place"' in output
    _, output, _ = run(*asked, "in blue, in the same place", "--background", "remove")
    assert "Captioned without its background: as asked" in output
    _, output, _ = run(*asked, "in blue", "--background", "keep", "--json")
    answer = json.loads(output)
    assert (answer["background"], answer["background_reason"]) == ("keep", "as asked")


def test_a_search_says_that_the_language_model_failed(
    indexed: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        monkeypatch.setenv("TERCET_LLM_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(indexed))
    monkeypatch.setenv("TERCET_LLM_MODEL", "some-model")
    asked = ("search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t", "in blue", "-c", "rewrite")
    code, output, errors = run(*asked)
    assert (code, errors) == (0, "")
    assert "Note      caption not rewritten (ConnectError at http://127.0.0.1" in output
    assert "fused by the template instead" in output
    _, output, _ = run(*asked, "--json")
    assert "ConnectError" in json.loads(output)["notes"][0]


def test_compositions_are_listed(run: Run) -> None:
    code, output, _ = run("compositions")
    assert code == 0
    lines = output.splitlines()
    for recipe in COMPOSITIONS.values():
        place = lines.index(f"{recipe.name}  {recipe.summary}")
        assert (
            lines[place + 1].startswith("  needs clip_") or "  needs background_remover" in lines[place + 1]
        )
        assert [word.split("=")[0] for word in lines[place + 2].split("reads ")[1].split(", ")] == list(
            recipe.reads
        )
    for name, knob in FIELDS.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert range_of(name) in line
        assert knob.metadata["help"] in line
    assert "slerp_alpha=0.8" in output
    assert "increment=off" in output
    assert max(map(len, lines)) < 300


def test_the_list_of_compositions_fits_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Console(width=80, highlight=False, markup=False, emoji=False, file=io.StringIO())
    monkeypatch.setattr(sys.modules["tercet.cli.compositions"], "output", lambda: narrow)
    assert run("compositions")[0] == 0
    output = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, output.splitlines())) <= 80
    for name in FIELDS:
        assert any(line.startswith(f"{name} ") for line in output.splitlines()), (
            f"{name} is broken over lines"
        )


def test_text_alone(indexed: Path, run: Run) -> None:
    code, output, _ = run("search", "gallery.tercet", "--text", "a red thing")
    assert code == 0
    assert "Caption" not in output


def test_a_moved_gallery(indexed: Path, run: Run) -> None:
    indexed.rename(indexed.with_name("moved"))
    _, output, _ = run("search", "gallery.tercet", "-t", "red", "-k", "1", "--gallery", "moved", "--json")
    assert Path(json.loads(output)["results"][0]["path"]).exists()


def test_captions_go_on_past_a_bad_picture(stand_in: Path, run: Run) -> None:
    Path("bad.png").write_text("no picture")
    good = ["gallery/part0/0000.png", "gallery/part0/0003.png"]
    code, output, errors = run("caption", good[0], "bad.png", good[1])
    assert code == 1
    assert [line.split(": ")[0] for line in output.splitlines()] == good
    assert "bad.png" in errors
    _, output, _ = run("caption", *good, "--json")
    assert [json.loads(line)["path"] for line in output.splitlines()] == good


def test_templates_are_listed(run: Run) -> None:
    code, output, _ = run("templates")
    assert code == 0
    assert "caption-modification  {caption}, {modification}" in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "nowhere", "-t", "x"], 1, "nowhere does not exist; make one: tercet index"),
        (["search", "gallery", "-t", "x"], 1, "gallery is not an index; make one"),
        (["search", "gallery.tercet", "-i", "nowhere.png"], 1, "nowhere.png: there is no such file"),
        (["search", "gallery.tercet", "-t", " "], 1, "is empty"),
        (
            ["search", "gallery.tercet", "-i", "gallery/part0/0003.png", "-t", "x", "--template", "y"],
            1,
            "template",
        ),
        (["search", "gallery.tercet", "-t", "x", "--sheet", "a.txt"], 1, "cannot draw a.txt"),
        (["search", "gallery.tercet"], 2, "give --image, --text, or both"),
        (["search", "gallery.tercet", "-t", "x", "--exclude-reference"], 2, "needs the reference"),
        (["search", "gallery.tercet", "-t", "x", "-k", "0"], 2, "1"),
        ([*BOTH, "-c", "no-such"], 1, "there is no composition 'no-such'; there are text, image"),
        ([*BOTH, "-c", "slerp", "--background", "keep"], 1, "'slerp' does not read 'background'"),
        ([*BOTH, "--set", "no_such=1"], 1, "does not read 'no_such', and no composition does"),
        ([*BOTH, "--set", "captions=40"], 1, "captions is 40; it may be a whole number from 1 to 32"),
        ([*BOTH, "--set", "captions=two"], 1, "captions is 'two'; it may be"),
        ([*BOTH, "--set", "captions"], 2, "has no value"),
        ([*BOTH, "--set", "captions=1", "--set", "captions=2"], 2, "given twice"),
        ([*BOTH, "-c", "rewrite"], 1, "set llm_model, or TERCET_LLM_MODEL"),
        (["search", "gallery.tercet", "-t", "x", "-c", "text"], 2, "give both --image and"),
        (["index", "nowhere"], 1, "cannot read nowhere"),
        (["index", "-"], 2, "--output"),
        (["index", "gallery", "-o", "gallery"], 1, "gallery is there and is no index"),
    ],
)
def test_a_mistake_is_one_message(
    indexed: Path, run: Run, arguments: list[str], code: int, message: str
) -> None:
    left, output, errors = run(*arguments)
    assert left == code
    assert message in errors
    assert "Traceback" not in errors
    if code == 1:
        assert len(errors.splitlines()) == 1
        assert "rank" not in output or "--sheet" in arguments


def test_nobody_at_the_address(tmp_path: Path, run: Run) -> None:
    write_pictures(tmp_path / "gallery", 1)
    for command in (
        ["index", "gallery"],
        ["search", "gallery.tercet", "-t", "x"],
        ["caption", "gallery/part0/0000.png"],
    ):
        code, output, errors = run(*command, "--server", "localhost:9")
        assert (code, output) == (1, "")
        assert "localhost:9" in errors
        assert "Traceback" not in errors


def test_file_names_cannot_steer_the_terminal(stand_in: Path, run: Run) -> None:
    (stand_in / "\x1b[2Jwipe.png").write_bytes((stand_in / "part0/0000.png").read_bytes())
    (stand_in / "[red]bold\udcff.png").write_bytes((stand_in / "part0/0003.png").read_bytes())
    assert run("index", "gallery")[0] == 0
    _, output, _ = run("search", "gallery.tercet", "-t", "x", "-k", "100")
    assert "\x1b" not in output
    assert "\\x1b[2Jwipe.png" in output
    assert "[red]bold\\udcff.png" in output


def test_help_is_quick_and_complete() -> None:
    """No help text should wait for FAISS or gRPC."""
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import tercet.cli"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "faiss" not in loaded
    assert console.DEFAULT_SERVER == "localhost:8001"


def test_an_errors_notes_are_lines_of_their_own(
    indexed: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(server: str) -> None:
        error = ServerUnreachable("nobody answers")
        error.add_note("  captioner: not \x1b[31mloaded")
        raise error

    monkeypatch.setattr(sys.modules["tercet.cli.search"], "connect", refuse)
    code, _, errors = run("search", "gallery.tercet", "--text", "red")
    assert code == 1
    assert errors.splitlines() == ["Error: nobody answers", "  captioner: not \\x1b[31mloaded"]
