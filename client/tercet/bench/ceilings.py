"""The ceiling of a target: what this machine's fastest engines do of the same work, without a server.

`benchmarks/ceilings.py` measures each step by itself, on all cores, batched as well as it can be. Work that
shares the same cores one step after another takes the sum of the steps' times, so a target's ceiling is
1 / sum(1 / rate of each step). Turning text to tokens and back is not counted: it is what a server adds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tercet.bench.server import Step
from tercet.errors import InputError

__all__ = ["DECODER", "SEARCH", "Ceiling", "ceiling_of", "read_ceilings", "write_ceilings"]

FORMAT = 1
SEARCH = "search"
DECODER = "decode_image"


@dataclass(frozen=True)
class Ceiling:
    """How many pictures, texts or queries a second one step does with one engine, at its best setting.

    `outputs` are those of `decode_image` that were made. `sessions` work at once, each on `threads` threads,
    on `batch` rows. `size` is the gallery that was searched; a search takes time in proportion to it.
    """

    step: str
    engine: str
    per_second: float
    batch: int = 1
    sessions: int = 1
    threads: int = 1
    outputs: tuple[str, ...] = ()
    size: int = 0


def ceiling_of(steps: Iterable[Step], rows: Sequence[Ceiling], gallery: int = 0) -> float | None:
    """The ceiling of a target that consists of `steps`, and of a search where there is a gallery: per second.

    None where a network's, the decoder's or the search's own is not among `rows`.
    """
    seconds = 0.0
    wanted = [(step.model, step.outputs) for step in steps if step.network or step.model == DECODER]
    for model, outputs in [*wanted, *([(SEARCH, frozenset[str]())] if gallery else [])]:
        rates = [
            row.per_second * row.size / gallery if model == SEARCH else row.per_second
            for row in rows
            if row.step == model and (model != DECODER or frozenset(row.outputs) == outputs)
        ]
        if not rates:
            return None
        seconds += 1 / max(rates)
    return 1 / seconds if seconds else None


def write_ceilings(file: Path, rows: Sequence[Ceiling], machine: dict[str, Any], lineup: str) -> None:
    """Write what `read_ceilings` reads; `lineup` is the fingerprint of what was measured."""
    content = {
        "format": FORMAT,
        "lineup": lineup,
        "machine": machine,
        "rows": [asdict(row) for row in rows],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def read_ceilings(file: Path) -> tuple[list[Ceiling], str]:
    """The rows of a file, and the fingerprint of the lineup they were measured with.

    Raises:
        InputError: no such file, or not one that `benchmarks/ceilings.py` wrote.
    """
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise InputError(
                f"{file} has format {content['format']}, not {FORMAT}: measure the ceilings anew"
            )
        rows = [Ceiling(**{**row, "outputs": tuple(row["outputs"])}) for row in content["rows"]]
        return rows, str(content["lineup"])
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {error.strerror}; give what benchmarks/ceilings.py wrote"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not what benchmarks/ceilings.py writes ({error})") from error
