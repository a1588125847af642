"""Captions rewritten by a language model: a small HTTP server answers well, badly, late or not at all."""

import gzip
import json
import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.compositions import rewrite
from tercet.compositions.needs import RewriteNeed, Rewritten
from tercet.compositions.rewrite import LABEL, Rewriter, default_cache, fill_prompt, parse_reply, read_prompt
from tercet.errors import InputError, TercetError
from tests.client.compositions.formulas import make_picture
from tests.client.compositions.language_model import (
    LanguageModel,
    Reply,
    drips,
    hangs_up,
    language_model,
    says,
    sends,
    waits,
)
from tests.client.stand_ins import Connect

KEY = "sk-a-very-secret-key"
GOOD = says(f"{LABEL}: a blue dress")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no endpoint of the user's, and a cache of the test's own."""
    for name in (
        "TERCET_LLM_URL",
        "TERCET_LLM_KEY",
        "TERCET_LLM_MODEL",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def need(caption: str = "a red dress", modification: str = "in blue", **options: object) -> RewriteNeed:
    return RewriteNeed(caption, modification, "some-model", read_prompt(), **{"seconds": 20.0, **options})  # type: ignore[arg-type]


def ask(*replies: Reply, seconds: float = 20.0) -> tuple[Rewritten, LanguageModel]:
    with language_model(*replies) as model, Rewriter(model.url) as rewriter:
        return rewriter(need(seconds=seconds)), model


def test_a_good_reply_is_the_rewritten_caption() -> None:
    answer, model = ask(GOOD)
    assert answer == Rewritten("a blue dress")
    (request,) = model.requests
    assert model.paths == ["/v1/chat/completions"]
    assert (request["model"], request["temperature"]) == ("some-model", 0)
    assert request["messages"] == [
        {"role": "user", "content": fill_prompt(read_prompt(), "a red dress", "in blue")}
    ]
    assert "Description: a red dress\nWish: in blue\nEdited description:" in model.prompts[0]
    assert "Authorization" not in model.headers[0]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (f"{LABEL}: a sign that says: open: all day", "a sign that says: open: all day"),
        (f"{LABEL.upper()} :  a dog ", "a dog"),
        (f"Sure!\n\n**{LABEL}:** a dog\n\nI hope that helps.", "a dog"),
        (f"- {LABEL}: *a dog*", "a dog"),
        (f"{LABEL}:\n\na dog\nand more", "a dog"),
        (f"Description: a cat\nWish: a dog\n{LABEL}: a dog", "a dog"),
        (f'{LABEL}: "a dog"', "a dog"),
        (f"{LABEL}: \u201ca dog\u201d", "a dog"),
        (f'{LABEL}: "Stop" and "Go" signs', '"Stop" and "Go" signs'),
        (f"<think>{LABEL}: a cat?\nNo.</think>\n{LABEL}: a dog", "a dog"),
        ("a dog on a beach", "a dog on a beach"),
        ("  a dog on a beach \n\n", "a dog on a beach"),
        (f"{LABEL}: ein Hund, \u72ac", "ein Hund, \u72ac"),
    ],
)
def test_the_text_is_found_in_a_reply(reply: str, text: str) -> None:
    assert parse_reply(reply) == text
    assert ask(says(reply))[0] == Rewritten(text)


@pytest.mark.parametrize(
    "reply",
    ["", " \n", "two lines\nwithout the label", f"{LABEL}:", f"{LABEL}: ...", "<think>a dog", '""', "---"],
)
def test_a_reply_without_a_text_is_a_failure(reply: str) -> None:
    assert parse_reply(reply) is None
    assert ask(says(reply))[0].failure == f'the model did not answer with a line "{LABEL}: ..."'


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_reply_is_too_strange(reply: str) -> None:
    text = parse_reply(reply)
    assert text is None or (text.strip() == text and text in reply and any(map(str.isalnum, text)))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.text(max_size=60))
def test_nothing_filled_into_the_prompt_is_read_as_a_field(caption: str, modification: str) -> None:
    filled = fill_prompt("<{caption}|{modification}>", caption, modification)
    assert filled == f"<{' '.join(caption.split())}|{' '.join(modification.split())}>"


# Failures


@pytest.mark.parametrize("status", [500, 429, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with language_model(sends(status, b"busy"), GOOD) as model, Rewriter(model.url, keep=False) as rewriter:
        assert rewriter(need()) == Rewritten("a blue dress")
        assert len(model.requests) == 2
    answer, model = ask(sends(status, b"busy"))
    assert answer == Rewritten("", f"HTTP status {status}")
    assert len(model.requests) == rewrite.TRIES


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_will_not_pass_is_not_asked_again(status: int) -> None:
    answer, model = ask(sends(status, KEY.encode(), Location="/elsewhere"))
    assert answer == Rewritten("", f"HTTP status {status}")
    assert model.paths == ["/v1/chat/completions"]


def test_a_connection_that_breaks_is_tried_again() -> None:
    answer, model = ask(hangs_up, GOOD)
    assert answer == Rewritten("a blue dress")
    assert len(model.requests) == 2


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
    answer = Rewriter(url)(need())
    assert answer == Rewritten("", f"ConnectError at {url}")


@pytest.mark.parametrize("reply", [waits(3, GOOD), drips(0.02)])
def test_an_answer_that_is_late_is_not_waited_for(reply: Reply) -> None:
    started = time.monotonic()
    answer, model = ask(reply, seconds=0.3)
    assert answer == Rewritten("", "no answer within 0.3 s")
    assert time.monotonic() - started < 2.5
    assert len(model.requests) <= 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": {"message": 1}}',
        b"[" * 100_000,
    ],
)
def test_garbage_is_a_failure(body: bytes) -> None:
    answer, model = ask(sends(200, body))
    assert answer == Rewritten("", "the answer is no chat completion")
    assert len(model.requests) == 1


def test_a_huge_reply_is_not_read_to_its_end() -> None:
    answer, _ = ask(sends(200, b" " * (20 * 2**20)))
    assert answer == Rewritten("", "the answer is over 256 KiB")
    bomb = gzip.compress(b" " * (20 * 2**20))
    answer, _ = ask(sends(200, bomb, Content_Encoding="gzip"))
    assert answer == Rewritten("", "the answer is over 256 KiB")
    answer, _ = ask(says(f"{LABEL}: {'very ' * 1000}blue"))
    assert answer == Rewritten("", "the rewritten caption is over 2,000 characters")


def test_a_text_that_cannot_be_sent_on_is_a_failure() -> None:
    answer, _ = ask(sends(200, b'{"choices": [{"message": {"content": "a \\ud800 dog"}}]}'))
    assert "lone surrogate" in str(answer.failure)


# The cache


def test_a_second_run_needs_no_server() -> None:
    with language_model(GOOD) as model, Rewriter(model.url) as rewriter:
        assert rewriter(need()) == rewriter(need()) == Rewritten("a blue dress")
        assert len(model.requests) == 1
    # Not even an address, and however long one would wait.
    assert Rewriter()(need(seconds=0.1)) == Rewritten("a blue dress")
    for other in (need("a dog"), need(modification="in red")):
        with pytest.raises(InputError, match="no language model to ask: set TERCET_LLM_URL"):
            Rewriter()(other)


def test_model_and_prompt_are_part_of_what_was_asked(tmp_path: Path) -> None:
    with language_model(GOOD, says("a second"), says("a third")) as model:
        rewriter = Rewriter(model.url, cache=tmp_path / "own")
        one = need()
        others = [
            RewriteNeed(one.caption, one.modification, "other", one.prompt),
            RewriteNeed(one.caption, one.modification, one.model, "{caption} {modification}"),
        ]
        first = [rewriter(each).text for each in (one, *others)]
        assert first == ["a blue dress", "a second", "a third"]
        assert [rewriter(each).text for each in (one, *others)] == first
        assert len(model.requests) == 3
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_failures_are_not_kept() -> None:
    with language_model(sends(400, b""), GOOD) as model:
        rewriter = Rewriter(model.url)
        assert rewriter(need()).failure
        assert not default_cache().exists()
        assert rewriter(need()) == Rewritten("a blue dress")


def test_a_damaged_answer_on_disk_is_asked_for_again() -> None:
    with language_model(GOOD) as model:
        rewriter = Rewriter(model.url)
        rewriter(need())
        (kept,) = default_cache().iterdir()
        for damage in (b"", b"{", b"[]", b'{"text": 3}', b'{"text": " "}'):
            kept.write_bytes(damage)
            assert rewriter(need()) == Rewritten("a blue dress")
        assert len(model.requests) == 6
        assert json.loads(kept.read_bytes())["text"] == "a blue dress"


def test_a_rewriter_may_keep_nothing() -> None:
    with language_model(GOOD) as model:
        rewriter = Rewriter(model.url, keep=False)
        rewriter(need())
        rewriter(need())
        assert len(model.requests) == 2
    assert not default_cache().exists()


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        language_model(GOOD) as model,
        pytest.raises(InputError, match=r"cannot keep the rewritten caption in .*XDG_CACHE_HOME"),
    ):
        Rewriter(model.url, cache=tmp_path / "file" / "cache")(need())


def test_many_threads_share_a_rewriter() -> None:
    with language_model(GOOD) as model, Rewriter(model.url) as rewriter, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: rewriter(need(f"dress {number % 5}")), range(40)))
    assert answers == [Rewritten("a blue dress")] * 40
    assert len(list(default_cache().iterdir())) == 5


# The key and the address


def test_the_key_goes_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    with language_model(GOOD, sends(401, b"")) as model:
        monkeypatch.setenv("TERCET_LLM_URL", model.url)
        monkeypatch.setenv("TERCET_LLM_KEY", f" {KEY}\n")
        rewriter = Rewriter()
        rewriter(need())
        failed = rewriter(need("a dog"))
        assert Rewriter(model.url, key="another")(need("a cat")).failure
    assert [headers["Authorization"] for headers in model.headers] == [
        f"Bearer {KEY}",
        f"Bearer {KEY}",
        "Bearer another",
    ]
    said = [repr(rewriter), str(failed), caplog.text, json.dumps(model.requests)]
    said += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(said) == 5
    assert not any(KEY in text for text in said)
    assert "httpx" in caplog.text, "the log was looked at"


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-a\nb", "sk-\x00"])
def test_a_key_that_no_header_carries_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with pytest.raises(InputError, match="copy it again into TERCET_LLM_KEY") as refused:
        Rewriter("http://localhost:9/v1", key=key)
    assert "sk-" not in str(refused.value)
    if "\x00" not in key:
        monkeypatch.setenv("TERCET_LLM_KEY", key)
        with pytest.raises(InputError, match="copy it again into TERCET_LLM_KEY"):
            Rewriter("http://localhost:9/v1")(need())


@pytest.mark.parametrize(
    "url",
    [
        KEY,
        "localhost:11434/v1",
        "ftp://localhost/v1",
        "http://",
        "http://[::1/v1",
        "http://localhost:99999/v1",
        f"http://user:{KEY}@localhost/v1",
        f"http://{KEY}@localhost/v1",
        f"http://localhost/v1?key={KEY}",
        f"http://localhost/v1#{KEY}",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(InputError, match="the language model's address") as refused:
        Rewriter(url)
    assert KEY not in str(refused.value)
    monkeypatch.setenv("TERCET_LLM_URL", url)
    with pytest.raises(InputError, match="the language model's address"):
        Rewriter()(need())


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(TercetError, match=r"pip install 'tercet\[rewrite\]'"):
        Rewriter("http://localhost:9/v1")(need())


# The prompt


def test_a_prompt_of_the_users_own(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{modification}! But: {caption}.", "utf-8")
    assert read_prompt(str(prompt)) == "{modification}! But: {caption}."
    for bad in ("{caption}", "{caption} {caption} {modification}", "x" * 40_000 + "{caption} {modification}"):
        prompt.write_text(bad)
        with pytest.raises(InputError, match="once each, in at most 32,000 characters"):
            read_prompt(str(prompt))
    prompt.write_bytes(b"\xff {caption} {modification}")
    for path in (prompt, tmp_path / "missing.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read.*give a text file in UTF-8"):
            read_prompt(str(path))


def test_tercets_prompt_holds_both_fields_and_the_label_once_more_than_its_examples() -> None:
    prompt = read_prompt()
    assert prompt.rstrip().endswith(f"{LABEL}:")
    assert prompt.count("Description: ") == prompt.count("Wish: ") == prompt.count(f"{LABEL}:") == 6
    assert prompt.count("{caption}") == prompt.count("{modification}") == 1


# With a client


def test_a_client_asks_the_model_and_a_second_one_needs_none(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{caption} -> {modification}")
    settings = {"llm_model": "some-model", "prompt": str(prompt)}
    picture = make_picture()
    with language_model(GOOD) as model:
        monkeypatch.setenv("TERCET_LLM_URL", model.url)
        client, _ = connect()
        query = client.compose_queries(picture, "in blue", composition="rewrite", settings=settings)
    assert query.composition.text == "a blue dress"
    assert query.notes == ()
    assert model.prompts == [f"{query.caption.text} -> in blue"]
    np.testing.assert_array_equal(query.embedding, client.embed_texts("a blue dress"))
    monkeypatch.delenv("TERCET_LLM_URL")
    client, _ = connect()
    again = client.compose_queries(picture, "in blue", composition="rewrite", settings=settings)
    np.testing.assert_array_equal(again.embedding, query.embedding)
    with pytest.raises(InputError, match="no language model to ask"):
        client.compose_queries(picture, "in red", composition="rewrite", settings=settings)


@pytest.mark.parametrize(
    ("reply", "seconds", "reason"),
    [
        (sends(401, b""), 20, "HTTP status 401"),
        (waits(2, GOOD), 0.2, "no answer within 0.2 s"),
        (sends(200, b"<html>"), 20, "the answer is no chat completion"),
        (says("I will not.\nSorry."), 20, "the model did not answer with a line"),
    ],
)
def test_a_client_falls_back_to_the_template_and_says_so(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, reply: Reply, seconds: float, reason: str
) -> None:
    picture = make_picture()
    settings = {"llm_model": "some-model", "llm_seconds": seconds, "template": "photo"}
    with language_model(reply) as model:
        monkeypatch.setenv("TERCET_LLM_URL", model.url)
        client, _ = connect()
        query = client.compose_queries(picture, "in blue", composition="rewrite", settings=settings)
    assert query.composition.text == f"a photo of {query.caption.text}, in blue"
    (note,) = query.notes
    assert note.startswith(f"caption not rewritten ({reason}")
    assert note.endswith("fused by the template instead")
    np.testing.assert_array_equal(query.embedding, client.embed_texts(query.composition.text))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache() == tmp_path / "tercet" / "rewrites"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "tercet" / "rewrites"


def test_no_partial_files_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with language_model(GOOD) as model:
        Rewriter(model.url)(need())
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(InputError, match="No space left"):
            Rewriter(model.url)(need("a dog"))
    assert len(list(default_cache().iterdir())) == 1
    assert threading.active_count() < 50
    assert os.listdir(default_cache())[0].endswith(".json")
