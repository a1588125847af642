"""The lineups that come with Tercet: what they promise can be kept."""

import re

import pytest

from tercet_export.lineup import LINEUPS, available, read_lineup
from tercet_export.registry import networks

THESIS = ("inspyrenet", "ofa-large", "clip-image", "clip-text", "pic2word")
HOMES = re.compile(r"hf://[\w.-]+/[\w.-]+(/[\w.-]+)?|https://[\w./-]+")


@pytest.mark.parametrize("name", available())
def test_every_part_of_a_lineup_has_a_home(name: str) -> None:
    lineup, base = read_lineup(name)
    assert lineup.name == name
    assert {"background_remover", "captioner", "clip_image", "clip_text"} <= lineup.choices().keys()
    for choice in lineup.choices().values():
        assert choice.home or HOMES.fullmatch(choice.checkpoint) or (base / choice.checkpoint).is_file()
        if choice.tokenizer:
            assert HOMES.fullmatch(choice.tokenizer) or (base / choice.tokenizer).is_file()
    assert lineup.clip_image is not None
    assert lineup.clip_text is not None
    assert lineup.clip_image.checkpoint == lineup.clip_text.checkpoint


def test_the_thesis_has_the_networks_of_the_thesis() -> None:
    assert tuple(choice.network for choice in read_lineup("thesis")[0].choices().values()) == THESIS


def test_every_captioner_with_public_weights_has_a_lineup() -> None:
    captioners = {name for name, network in networks().items() if network.role == "captioner"}
    served = {choice.network for name in available() if (choice := read_lineup(name)[0].captioner)}
    # OFA's tiny and medium were never finetuned to caption.
    assert captioners - served == {"ofa-tiny", "ofa-medium"}


def test_a_lineup_begins_by_saying_what_it_is() -> None:
    for path in LINEUPS.glob("*.toml"):
        assert path.read_text().startswith("# "), path
