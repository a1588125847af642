"""Captions rewritten by a language model behind any OpenAI-compatible endpoint: CIReVL's idea.

CIReVL (Karthik et al., 2024; ExplainableML/Vision_by_Language) lets a language model describe the picture
that the user wishes for, so that words which the modification contradicts go. The prompt is our own, in
`rewrite_prompt.txt`, and can be replaced by a file. Answers are kept on disk by content, so that a run can be
repeated without the model; what fails is not kept.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tercet.composition import check_text
from tercet.compositions.needs import RewriteNeed, Rewritten
from tercet.errors import InputError, TercetError, TextError

__all__ = ["LABEL", "Rewriter", "default_cache", "fill_prompt", "parse_reply", "read_prompt"]

LABEL = "Edited description"
"""What stands before the rewritten caption in a reply."""

FIELDS = ("{caption}", "{modification}")
MAX_PROMPT = 32_000
"""Characters of a prompt file, at most."""

MAX_REPLY = 2**18
"""Bytes of an answer that are read, at most."""

MAX_TEXT = 2_000
"""Characters of a rewritten caption, at most: CLIP reads about 350."""

MAX_TOKENS = 400
"""Tokens that the model is asked for, at most: a description, and room for a model that thinks aloud."""

AGAIN = (408, 429, 500, 502, 503, 504)
TRIES = 3


class Rewriter:
    """Asks the language model; safe to share between threads.

    ```python
    with Rewriter("http://localhost:11434/v1", key=None) as rewriter:
        rewriter(RewriteNeed("a red dress", "in blue", model="llama3.1", prompt=read_prompt())).text
    ```
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, cache: Path | None = None, keep: bool = True
    ) -> None:
        """Connect lazily.

        Args:
            url: of the endpoint, up to but without `/chat/completions`; None: what TERCET_LLM_URL says. None
                of both is an error only when an answer is not on disk.
            key: sent as bearer token; None: what TERCET_LLM_KEY says. It is written nowhere.
            cache: the folder of answers; None: `default_cache()`.
            keep: whether to keep answers on disk, and to use those there.

        What the environment says is looked at when an answer is wanted.

        Raises:
            InputError: `url` is no HTTP address, or has a password in it; `key` cannot be sent.
        """
        self._url = None if url is None else _checked_url(url)
        self._key = None if key is None else _checked_key(key)
        self._cache = cache
        self._keep = keep
        self._lock = threading.Lock()
        self._http: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Rewriter({self._url!r})"

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None

    def __call__(self, need: RewriteNeed) -> Rewritten:
        """The rewritten caption, kept or new; its `failure` says why there is none.

        Raises:
            InputError: no address is known and the answer is not on disk; the address or the key that the
                environment gives cannot be used; the disk refuses.
            TercetError: httpx is not installed.
        """
        path = (self._cache or default_cache()) / f"{_digest(need)}.json" if self._keep else None
        if path is not None and (kept := _read_kept(path)) is not None:
            return Rewritten(kept)
        url = _checked_url(os.environ.get("TERCET_LLM_URL", "")) if self._url is None else self._url
        if not url:
            raise InputError(
                "no language model to ask: set TERCET_LLM_URL to an OpenAI-compatible endpoint, such as "
                "http://localhost:11434/v1, and TERCET_LLM_KEY where it wants a key"
            )
        answer = self._ask(url, need)
        if path is not None and answer.failure is None:
            _keep(path, {"model": need.model, "text": answer.text})
        return answer

    def _ask(self, url: str, need: RewriteNeed) -> Rewritten:
        client = self._client()  # Making one takes a while, which is not the endpoint's.
        deadline = time.monotonic() + need.seconds
        for attempt in range(1, TRIES + 1):
            answer, again = self._try(client, url, need, deadline)
            pause = random.uniform(0, 0.2 * 2**attempt)
            if not again or attempt == TRIES or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        return answer

    def _try(self, client: Any, url: str, need: RewriteNeed, deadline: float) -> tuple[Rewritten, bool]:
        """One request: the answer, and whether to ask again."""
        import httpx

        body = {
            "model": need.model,
            "messages": [
                {"role": "user", "content": fill_prompt(need.prompt, need.caption, need.modification)}
            ],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        key = _checked_key(os.environ.get("TERCET_LLM_KEY", "")) if self._key is None else self._key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        left = max(deadline - time.monotonic(), 0.01)
        late = Rewritten("", f"no answer within {need.seconds:g} s")
        try:
            with client.stream(
                "POST", f"{url}/chat/completions", json=body, headers=headers, timeout=left
            ) as response:
                if response.status_code != 200:
                    failed = Rewritten("", f"HTTP status {response.status_code}")
                    return failed, response.status_code in AGAIN
                raw = b""
                for chunk in response.iter_bytes():
                    raw += chunk
                    if len(raw) > MAX_REPLY:
                        return Rewritten("", f"the answer is over {MAX_REPLY // 1024} KiB"), False
                    # httpx's timeout is per chunk: an endpoint that drips would never end.
                    if time.monotonic() > deadline:
                        return late, False
        except httpx.TimeoutException:
            return late, False
        except httpx.HTTPError as error:
            return Rewritten("", f"{type(error).__name__} at {url}"), True
        return _read_completion(raw), False

    def _client(self) -> Any:
        try:
            import httpx
        except ImportError as error:
            raise TercetError("rewrite needs httpx: pip install 'tercet[rewrite]'") from error
        with self._lock:
            if self._http is None:
                self._http = httpx.Client()
            return self._http


def default_cache() -> Path:
    """Where answers are kept: `tercet/rewrites` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tercet" / "rewrites"


def read_prompt(path: str = "") -> str:
    """The text of the prompt in the file at `path`; Tercet's own where it is empty.

    Raises:
        InputError: the file cannot be read, is too long, or lacks {caption} or {modification}.
    """
    if not path:
        return resources.files("tercet.compositions").joinpath("rewrite_prompt.txt").read_text("utf-8")
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt {path} cannot be read: {error}; give a text file in UTF-8") from error
    missing = [name for name in FIELDS if text.count(name) != 1]
    if missing or len(text) > MAX_PROMPT:
        raise InputError(
            f"the prompt {path} must hold {' and '.join(FIELDS)} once each, "
            f"in at most {MAX_PROMPT:,} characters"
        )
    return text


def fill_prompt(prompt: str, caption: str, modification: str) -> str:
    """The prompt with its fields filled in, each on one line; nothing filled in is read as a field."""
    values = {"{caption}": " ".join(caption.split()), "{modification}": " ".join(modification.split())}
    return re.sub(r"\{caption\}|\{modification\}", lambda found: values[found[0]], prompt)


def parse_reply(reply: str) -> str | None:
    """The rewritten caption in a model's reply; None where none can be told.

    It is what follows "Edited description:" on that line or, where that is empty, the next; all of it,
    further colons included. A reply of one line needs no label. What a model thinks aloud in
    <think> is left out.
    """
    spoken = re.sub(r"(?s)<think>.*?(?:</think>|\Z)", "", reply)
    lines = [line.strip() for line in spoken.splitlines() if line.strip()]
    label = re.compile(rf"^[\s*_#>\-]*{LABEL}[*_]*\s*:[*_]*\s*(.*)$", re.IGNORECASE)
    for place, line in enumerate(lines):
        if found := label.match(line):
            return _tidy(found[1] or "".join(lines[place + 1 : place + 2]))
    return _tidy(lines[0]) if len(lines) == 1 else None


def _tidy(text: str) -> str | None:
    text = text.strip().strip("*_").strip()
    for opening, closing in ('""', "''", "``", "\u201c\u201d"):
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            text = text[1:-1].strip()
    return text if any(character.isalnum() for character in text) else None


def _read_completion(raw: bytes) -> Rewritten:
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
        text = parse_reply(content)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return Rewritten("", "the answer is no chat completion")
    if text is None:
        return Rewritten("", f'the model did not answer with a line "{LABEL}: ..."')
    if len(text) > MAX_TEXT:
        return Rewritten("", f"the rewritten caption is over {MAX_TEXT:,} characters")
    try:
        return Rewritten(check_text(text, "the rewritten caption"))
    except TextError as error:
        return Rewritten("", str(error))


def _checked_url(url: str) -> str:
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # It is not repeated: whoever takes one variable for another has put the key there.
        raise InputError(
            "the language model's address is no http:// or https:// address; "
            "give one like http://localhost:11434/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the language model's address may hold no user, password, query or fragment; give the key as "
            "TERCET_LLM_KEY"
        )
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            "the language model's key has characters that no header can carry; "
            "copy it again into TERCET_LLM_KEY"
        )
    return key


def _digest(need: RewriteNeed) -> str:
    return hashlib.sha256(need.key.encode()).hexdigest()


def _read_kept(path: Path) -> str | None:
    """The text kept at `path`; None where there is none or it is damaged."""
    try:
        text = json.loads(path.read_bytes())["text"]
        return check_text(text)
    except (OSError, ValueError, KeyError, TypeError, TextError):
        return None


def _keep(path: Path, content: Mapping[str, str]) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content, indent=1), "utf-8")
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise InputError(
            f"cannot keep the rewritten caption in {path.parent} ({error.strerror}); make it writable, or "
            "name another folder with XDG_CACHE_HOME"
        ) from error
