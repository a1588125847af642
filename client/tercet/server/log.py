"""Triton's log: followed while it is written, and searched for why models did not load."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

from tercet.errors import ServerStartError

LAST_LINES = 12
POLL_SECONDS = 0.1
# The reason ends before the Python traceback, whose line ends Triton writes as a backslash and an n.
FAILED = re.compile(r"failed to load '([^']+)' version \d+: (.*?)(?:\\n\\nAt:.*)?\"?$", re.MULTILINE)


class Log:
    """The part of a log file that one server writes."""

    def __init__(self, file: Path, start: int) -> None:
        self.file = file
        self.start = start

    def read(self) -> str:
        """What was written so far."""
        with self.file.open("rb") as log:
            log.seek(self.start)
            return log.read().decode(errors="replace")

    def loaded(self) -> list[str]:
        """The models that are ready, in the order in which they became so."""
        return re.findall(r"successfully loaded '([^']+)'", self.read())

    def follow(self, on_line: Callable[[str], None], ended: threading.Event) -> None:
        """Call `on_line` with each line as it is written, until there are no more after `ended` is set."""
        with self.file.open("rb") as log:
            log.seek(self.start)
            rest = b""
            while True:
                last = ended.is_set()
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace"))
                if last:
                    return
                ended.wait(POLL_SECONDS)

    def failure(self) -> ServerStartError:
        """The error that tells why Triton ended while it started; its notes are lines of the log."""
        text = self.read()
        failed = FAILED.findall(text)
        if failed:
            error = ServerStartError(f"cannot load {', '.join(dict(failed))}")
            for name, reason in failed:
                error.add_note(f"  {name}: {reason}")
            return error
        error = ServerStartError("Triton ended while it started; the end of its log:")
        lines = [line for line in text.splitlines() if line.strip() and line[0] not in "+|"]
        for line in lines[-LAST_LINES:]:
            error.add_note(f"  {line}")
        return error
