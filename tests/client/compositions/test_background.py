"""When the background is kept: what the modification says, and what the mask shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.compositions.background import EMPTY, FULL, choose_by_mask, choose_by_text, own_background

OF_ITS_OWN = [
    "in the same place",
    "as a sketch, in the same place",
    "keep the background",
    "Keep the background, but make the dress blue",
    "with the same background",
    "the background stays the same",
    "same background but the dog is black",
    "on the same beach",
    "it is still on the beach",
    "leave the background unchanged",
    "in the same room, at night",
    "keep its original snowy background",
    "in the existing scene",
    "the scenery is unchanged",
    "is sleeping where it is",
    "in its original surroundings",
    "with a blue roof, keeping the background",
    "keep everything else in the scene",
    "against the same wall",
    "is in a similar setting",
    "shows the same location at night",
    "not on a beach but in the same field",
    "same scene in winter",
    "the same scene, without the dog",
    # What is done to the background of the reference.
    "the background is darker",
    "with fewer trees in the background",
    "with more people in the background",
    "the background should be blurrier",
    "a brighter background",
    "a less cluttered background",
    "the background is too dark",
    "the background has more trees",
    "remove the people from the background",
    "remove the car in the background",
    "no people in the background",
    "blur the background",
    "make the background blurry",
    # A change denied.
    "make it red but don't change the background",
    "make it red but don\u2019t change the background",
    "do not change the background",
    "without changing the background",
    "don't remove the background",
]

OF_ANOTHER_OR_NONE = [
    "in blue",
    "on a beach",
    "at night",
    "is larger",
    "on a table",
    "two of them",
    "as a cartoon",
    "has longer sleeves",
    "change the background to snow",
    "replace the background with a beach",
    "with a plain white background",
    "against a blue background",
    "put it on a beach background",
    "in a different place",
    "in another room",
    "has a new background",
    "a different background",
    "with no background",
    "remove the background",
    "the background is a beach",
    "the background should be white",
    "the background becomes a winter landscape",
    "has a red background instead",
    "in a room with a view",
    # "the same", but no place.
    "is wearing the same dress in red",
    "in the same pose but blue",
    "in the same style",
    "the same dog, older",
    "the same number of dogs",
    "in the same colour",
    "of the same breed",
    "from the same angle",
    "at the same time of day",
    # Denied.
    "not in the same place",
    "without the same background",
    "is no longer in the same place",
    "instead of the same room, in a kitchen",
    # No comparisons, though they end like some.
    "the background is silver",
    "with a silver background",
    "a flower background",
    "on a leather background",
    "the background is a river",
    # A comparison of something else.
    "is darker and on a beach",
    "more flowers",
]


@pytest.mark.parametrize("modification", OF_ITS_OWN)
def test_a_background_that_is_counted_on_is_kept(modification: str) -> None:
    choice = choose_by_text(modification, "auto")
    assert choice.background == "keep"
    assert own_background(modification) in choice.reason  # type: ignore[operator]


@pytest.mark.parametrize("modification", OF_ANOTHER_OR_NONE)
def test_another_background_is_removed(modification: str) -> None:
    assert own_background(modification) is None
    assert choose_by_text(modification, "auto").background == "remove"


@given(
    st.sampled_from(OF_ITS_OWN),
    st.sampled_from(["in blue", "as a cartoon", "with two dogs", "is larger"]),
    st.sampled_from([", ", ". ", "; ", " and ", " but "]),
    st.booleans(),
    st.booleans(),
)
def test_neither_company_nor_case_nor_spaces_matter(
    place: str, other: str, between: str, first: bool, loud: bool
) -> None:
    text = between.join((place, other) if first else (other, place))
    spread = f" {text} ".replace(" ", " \n ")
    assert own_background(spread.upper() if loud else spread) is not None


@given(st.lists(st.sampled_from(OF_ANOTHER_OR_NONE), min_size=1, max_size=4))
def test_sentences_that_do_not_speak_of_it_do_not_together(sentences: list[str]) -> None:
    assert own_background(". ".join(sentences)) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_text_is_too_strange(text: str) -> None:
    found = own_background(text)
    assert found is None or found in " ".join(text.casefold().replace("\u2019", "'").split())


def test_a_long_text_is_read_quickly() -> None:
    for word in ("keep the ", "the same very ", "remove the x in ", "not ", "the background more "):
        own_background(word * 3000)


def test_a_request_is_followed() -> None:
    assert choose_by_text("in the same place", "remove").background == "remove"
    assert choose_by_text("on a beach", "keep").background == "keep"
    assert choose_by_text("on a beach", "keep").reason == "as asked"


@given(st.floats(0, 1))
def test_a_mask_that_shows_nothing_or_all_keeps_the_background(coverage: float) -> None:
    choice = choose_by_mask(coverage)
    if EMPTY <= coverage <= FULL:
        assert choice is None
    else:
        assert choice is not None
        assert choice.background == "keep"
        assert ("empty" if coverage < EMPTY else "full") in choice.reason


def test_no_mask_is_no_reason() -> None:
    assert choose_by_mask(None) is None
