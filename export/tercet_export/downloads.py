"""Checkpoints from homes that are no hub: `https://host/path/file`, downloaded once and kept.

Several official weights are release files of GitHub or lie in object stores. Hub repositories are
huggingface_hub's affair (`checkpoints.py`).
"""

import contextlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from rich.progress import Progress

from tercet.errors import CheckpointError

TIMEOUT = 60.0  # seconds without a byte
PIECE = 2**20


def download(url: str) -> Path:
    """The local copy of what lies at `url`, downloaded with a progress bar unless it is in torch's cache.

    A download that is broken off leaves nothing behind. CheckpointError for an address with a user, a query
    or a fragment (the manifest names every source, and such parts carry secrets), and where not all arrives.
    """
    parts = urlsplit(url)
    path = PurePosixPath(parts.path)
    if parts.scheme != "https" or not parts.hostname or not path.name or ".." in path.parts:
        raise CheckpointError(f"{url!r} names no file of a server: write https://host/path/file")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise CheckpointError(
            f"https://{parts.hostname}{path} was given with a user, a query or a fragment, which the "
            "manifest would tell to everybody: download the file yourself and give its path"
        )
    target = Path(torch.hub.get_dir()) / "tercet" / parts.netloc.replace(":", "_") / path.relative_to("/")
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch(url, target)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(
            f"{url} cannot be downloaded ({reason}): fetch it by other means and give the file's path"
        ) from error
    return target


def fetch(url: str, target: Path) -> None:
    """Write what lies at `url` to `target`, all of it or nothing. Raises OSError."""
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
            Progress(*Progress.get_default_columns(), transient=True) as progress,
        ):
            size = int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
            task = progress.add_task(f"Downloading {target.name}", total=size)
            while piece := answer.read(PIECE):
                file.write(piece)
                progress.advance(task, len(piece))
            if size is not None and file.tell() != size:  # urllib does not mind a connection cut short
                raise OSError(f"the connection broke off after {file.tell():,} of {size:,} bytes")
        os.replace(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
