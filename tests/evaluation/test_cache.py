"""The cache of answers: nothing is lost to a kill, and keys tell their parts apart."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.errors import InputError
from tercet.evaluation.cache import AnswerCache, key_of

ENDLESS = """
import sys
from pathlib import Path
from tercet.evaluation.cache import AnswerCache
with AnswerCache(Path(sys.argv[1])) as cache:
    for number in range(10**9):
        cache.put(str(number), b"x" * 100)
        print(number, flush=True)
"""


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_keys_are_equal_only_for_equal_parts(first: list[str], second: list[str]) -> None:
    assert (key_of(*first) == key_of(*second)) == (first == second)


def test_answers_come_back_and_are_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"\x00answer"

    for _ in range(2):
        with AnswerCache(tmp_path / "folder" / "answers.sqlite") as cache:
            assert cache.get_or_make("key", make) == b"\x00answer"
            assert cache.get("other") is None
    assert made == [1]


def test_threads_share_a_cache(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "answers.sqlite") as cache, ThreadPoolExecutor(8) as pool:
        numbers = [str(number) for number in range(200)]
        list(pool.map(lambda number: cache.put(number, number.encode()), numbers))
        assert [cache.get(number) for number in numbers] == [number.encode() for number in numbers]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    last = [writer.stdout.readline() for _ in range(300)][-1]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with AnswerCache(path) as cache:
        assert all(cache.get(str(number)) == b"x" * 100 for number in range(int(last) + 1))


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("something else, and long enough to be no database" * 100)
    with pytest.raises(InputError, match="--cache"):
        AnswerCache(path)
    assert path.read_text().startswith("something else")
