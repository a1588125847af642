"""`make ablation` in small: the committed table belongs to the committed numbers, and a run writes both."""

import csv
from pathlib import Path

import pytest

from tercet_training.ablation.__main__ import BEGIN, CHECKOUT, END, PLAIN, QUERIES, WAYS, run, write_table


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_table_plot_and_numbers_and_repeats_to_the_digit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def once(name: str) -> tuple[bytes, str]:
        docs = tmp_path / name
        run(
            output=docs / "output",
            repository=CHECKOUT / "model_repository",
            docs=docs,
            readme=readme,
            pictures=70,
            queries=25,
            seed=5,
        )
        assert (docs / "ablation.png").read_bytes().startswith(b"\x89PNG")
        return (docs / "ablation.csv").read_bytes(), readme.read_text()

    first, second = once("first"), once("second")
    assert first == second
    found = rows(tmp_path / "first" / "ablation.csv")
    assert {row["composition"] for row in found} == set(WAYS)
    assert {row["kind"] for row in found} == {
        "all", "addition", "attribute", "background", "setting", "style",
    }  # fmt: skip
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("\n| ") == len(WAYS) + 2
    # The numbers are of few queries, but what the method brings is plain even so.
    every = {row["composition"]: float(row["recall@1"]) for row in found if row["kind"] == "all"}
    assert every["caption"] > every["text"]
    assert "Recall@1" in capsys.readouterr().out


def test_the_readme_s_table_is_that_of_the_committed_numbers() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    table = readme.partition(BEGIN)[2].partition(END)[0]
    found = rows(CHECKOUT / "docs" / "ablation.csv")
    for composition, name in WAYS.items():
        of_all = next(row for row in found if row["composition"] == composition and row["kind"] == "all")
        assert of_all["queries"] == str(QUERIES)
        assert f"| {name} | {of_all['recall@1']} [{of_all['low']}, {of_all['high']}] |" in table


def test_the_rule_beats_the_plain_method_with_intervals_apart() -> None:
    found = {
        row["composition"]: row for row in rows(CHECKOUT / "docs" / "ablation.csv") if row["kind"] == "all"
    }
    assert float(found["caption"]["low"]) > float(found[PLAIN]["high"])


def test_a_file_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="lacks"):
        write_table(path, ["a"], [["b"]])
