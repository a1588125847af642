"""Fusing caption and modification: the modification stays whole, and no text is read as markup."""

import html

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet import composition
from tercet.composition import TEMPLATES, check_text, compose, needs_pseudo_token, read_template, token_bound
from tercet.errors import TextError


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


def refuse_to_count(texts: list[str]) -> list[int]:
    raise AssertionError(f"asked to count {texts}")


def test_the_default_puts_the_modification_after_the_caption() -> None:
    made = compose("a red dress", "in blue, on a beach", count_tokens=count_words)
    assert made.text == "a red dress, in blue, on a beach"
    assert (made.caption, made.modification) == ("a red dress", "in blue, on a beach")
    assert not made.caption_cut


def test_a_short_text_needs_no_count() -> None:
    assert compose("a dog", "at night", count_tokens=refuse_to_count).text == "a dog, at night"


def test_the_caption_is_cut_from_its_end_and_is_said_to_be() -> None:
    made = compose("one two three four five", "in blue", count_tokens=count_words, limit=7)
    assert made.text == "one two three, in blue"
    assert made.caption == "one two three"
    assert made.caption_cut


def test_the_caption_goes_before_the_modification_loses_a_word() -> None:
    made = compose(
        "one two", "a b c", count_tokens=count_words, limit=5, template="a photo of {caption}, {modification}"
    )
    assert made.text == "a b c"
    assert made.caption == ""
    assert made.caption_cut


def test_an_empty_caption_leaves_the_modification() -> None:
    made = compose(" ", "in blue", count_tokens=count_words, template="photo")
    assert made.text == "in blue"
    assert not made.caption_cut


def test_a_modification_that_does_not_fit_is_refused_with_the_counts() -> None:
    with pytest.raises(TextError, match=r"12 tokens.* reads 8.*shorten it by about 4"):
        compose("a dog", "a b c d e f g h i j", count_tokens=count_words, limit=8)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
def test_an_empty_modification_is_refused(text: str) -> None:
    with pytest.raises(TextError, match="modification is empty"):
        compose("a dog", text, count_tokens=count_words)


def test_a_lone_surrogate_is_refused_where_it_is() -> None:
    with pytest.raises(TextError, match=r"U\+DC80.* at character 3"):
        check_text("abc\udc80")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_holds_the_modification(name: str) -> None:
    made = compose("a cat", "asleep", template=name, count_tokens=count_words)
    assert "asleep" in made.text
    assert ("a cat" in made.text) == ("{caption}" in TEMPLATES[name])


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("no-such-name", "neither one of caption-modification"),
        ("{caption}", "neither"),
        ("{modification} {modification}", "once each"),
        ("{caption} {modification} {style}", "once each"),
        ("{caption.__class__} {modification}", "once each"),
        ("{caption!r} {modification}", "once each"),
        ("{{modification}} {", "brace"),
        ("{modification} }", "brace"),
        ("* and * {modification}", "one \\*"),
    ],
)
def test_a_bad_template_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(TextError, match=complaint):
        read_template(template)


def test_pseudo_word_templates_are_told_from_others() -> None:
    assert {name for name in TEMPLATES if needs_pseudo_token(name)} == {
        "pic2word",
        "searle",
        "lincir",
        "caption-pic2word",
    }
    assert not needs_pseudo_token("5*4 {modification}")
    assert not needs_pseudo_token("*{modification}")


def test_the_templates_placeholder_comes_before_the_users_star() -> None:
    made = compose("", "* * stars", template="pic2word", count_tokens=count_words)
    assert made.text == "a photo of * , * * stars"


def test_a_placeholder_may_follow_the_fields() -> None:
    made = compose("", "cartoon", template="a {modification} of *", count_tokens=count_words)
    assert made.text == "a cartoon of *"
    assert needs_pseudo_token("a {modification} of *")
    assert compose("", "4*4", template="a {modification} of *", count_tokens=count_words).text == "a 4*4 of *"


@pytest.mark.parametrize("star", ["*", "five * hotel", "\uff0a", "&ast; x", "&amp;#42;"])
def test_the_users_star_may_not_come_before_the_templates(star: str) -> None:
    with pytest.raises(TextError, match=r"has a \* of its own"):
        compose("", star, template="a {modification} of *", count_tokens=count_words)
    made = compose(
        f"a {star} dog", "toy", template="{caption} as * , {modification}", count_tokens=count_words
    )
    assert made.text.split().index("*") == made.text.split().index("as") + 1
    assert made.text.endswith("dog as * , toy")


def test_without_a_caption_the_pseudo_word_stays() -> None:
    made = compose("one two", "in blue", template="caption-pic2word", count_tokens=count_words, limit=9)
    assert (made.text, made.caption_cut) == ("a photo of * , in blue", True)
    made = compose("one two", "in blue", template="caption-pic2word", count_tokens=count_words, limit=10)
    assert made.text == "a photo of * , one, in blue"


@pytest.mark.parametrize(
    "text",
    [
        "{caption}",
        "{modification}",
        "{",
        "%s %(a)s",
        "$modification",
        "\\1 \\g<0>",
        "<|endoftext|>",
        "{0.__class__}",
    ],
)
def test_what_looks_like_markup_is_inserted_as_it_is(text: str) -> None:
    assert compose(text, f"m {text}", count_tokens=count_words).text == f"{text}, m {text}"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(
    caption=TEXTS, modification=TEXTS, template=st.sampled_from(sorted(TEMPLATES)), limit=st.integers(3, 20)
)
def test_the_modification_is_whole_and_the_limit_kept(
    caption: str, modification: str, template: str, limit: int
) -> None:
    try:
        made = compose(caption, modification, template=template, count_tokens=count_words, limit=limit)
    except TextError:
        alone = TEMPLATES["pic2word"] if template == "caption-pic2word" else TEMPLATES[template]
        fixed = 0 if "{caption}" in alone else len(alone.split()) - 1
        assert not modification.strip() or count_words([modification])[0] + fixed > limit
        return
    assert modification.strip() in made.text
    assert count_words([made.text])[0] <= limit
    assert made.caption in caption
    if "{caption}" in TEMPLATES[template]:
        assert made.caption_cut == (made.caption != caption.strip())


@given(words=st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=30), limit=st.integers(4, 40))
def test_no_more_of_the_caption_is_cut_than_must_be(words: list[str], limit: int) -> None:
    made = compose(" ".join(words), "in blue", count_tokens=count_words, limit=limit)
    assert len(made.caption.split()) == min(len(words), limit - 4)


@given(TEXTS)
def test_the_bound_on_tokens_holds_for_clips_cleaning(text: str) -> None:
    """The text is cleaned as in openai/CLIP's simple_tokenizer.py; a token covers at least a byte of that."""
    bound = token_bound(text)
    cleaned = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
    assert bound is None or len(cleaned.encode()) + 2 <= bound


@pytest.mark.parametrize("text", ["\u0130" * 20, "&nGt;" * 20, "\u0958" * 20])
def test_text_that_cleaning_lengthens_has_no_bound(text: str) -> None:
    cleaned = html.unescape(ftfy.fix_text(text)).lower()
    assert len(cleaned.encode()) > len(text.encode())
    assert token_bound(text) is None


def test_all_is_sorted() -> None:
    assert set(composition.__all__) <= set(vars(composition))
