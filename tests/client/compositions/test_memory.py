"""Answers about references are remembered: what was asked is not asked again, within the bytes allowed."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet import testing
from tercet.compositions import memory
from tercet.compositions.memory import OVERHEAD, AnswerMemory, size_of
from tests.client.stand_ins import Connect, Traffic


def captionings(traffic: Traffic) -> int:
    return sum(model.startswith("caption") for model in traffic.models)


@pytest.mark.parametrize("composition", ["caption", "caption+pic2word", "sum", "blend"])
def test_the_same_reference_with_another_text_costs_no_second_look(
    connect: Connect, composition: str
) -> None:
    client, traffic = connect()
    first = client.compose_queries(b"picture", "in blue", composition=composition)
    before = len(traffic.models)
    again = client.compose_queries(b"picture", "in red", composition=composition)
    assert all("text" in model for model in traffic.models[before:])
    assert len(traffic.models) > before
    fresh, _ = connect(remember=0)
    expected = fresh.compose_queries(b"picture", "in red", composition=composition)
    np.testing.assert_array_equal(again.vectors, expected.vectors)
    if first.caption is not None and again.caption is not None:
        np.testing.assert_array_equal(first.caption.mask, again.caption.mask)
    other = len(traffic.models)
    client.compose_queries(b"another picture", "in red", composition=composition)
    assert any("text" not in model for model in traffic.models[other:])


def test_nothing_is_remembered_where_it_is_switched_off(connect: Connect) -> None:
    client, traffic = connect(remember=0)
    for text in ("in blue", "in red"):
        client.compose_queries(b"picture", text)
    assert captionings(traffic) == 2
    with pytest.raises(ValueError, match="remember"):
        connect(remember=-1)


def test_background_kept_and_removed_are_two_answers(connect: Connect) -> None:
    client, traffic = connect()
    for background in ("keep", "remove", "keep", "remove"):
        client.compose_queries(b"picture", "in blue", background=background)
    assert captionings(traffic) == 2


def test_another_lineup_is_asked_anew(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    client, traffic = connect()
    client.compose_queries(b"picture", "in blue")
    monkeypatch.setitem(testing.MANIFEST, "fingerprint", "9" * 64)
    client.compose_queries(b"picture", "in red")
    assert captionings(traffic) == 1  # the server's lineup is taken for known for a while
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"tercet.{module}.LINEUP_SECONDS", -1.0)
    client.compose_queries(b"picture", "in green")
    assert captionings(traffic) == 2


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=60),
    st.integers(0, 6 * OVERHEAD),
)
def test_the_answers_used_last_are_kept_within_the_limit(uses: list[tuple[int, int]], limit: int) -> None:
    kept: OrderedDict[int, int] = OrderedDict()
    remembered = AnswerMemory(limit)
    for key, length in uses:
        found = remembered.get(str(key))
        assert (found is not None) == (key in kept)
        if found is not None:
            assert size_of(found) == kept[key]
            kept.move_to_end(key)
            continue
        size = OVERHEAD + 4 * length
        remembered.put(str(key), np.zeros(length, np.float32))
        if size <= limit:
            kept[key] = size
            while sum(kept.values()) > limit:
                kept.popitem(last=False)
    assert len(remembered) == len(kept)


def test_the_default_has_room_for_a_working_set() -> None:
    caption = memory.Caption(
        "a red dress", -1.0, np.zeros((224, 224, 3), np.uint8), np.zeros((224, 224), np.float32)
    )
    assert memory.REMEMBERED // size_of(caption) > 150
