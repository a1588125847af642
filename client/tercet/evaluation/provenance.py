"""What made a report: code, packages, machine, command line; and nothing that is secret."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tercet

__all__ = ["code_commit", "machine", "package_versions", "without_secrets", "written_command"]

PACKAGES = (
    "tercet",
    "numpy",
    "Pillow",
    "faiss-cpu",
    "tritonclient",
    "httpx",
    "onnxruntime",
    "nvidia-pytriton",
    "pyarrow",
    "matplotlib",
    "jinja2",
)
HIDDEN = "[hidden]"

_NAME = r"[\w.-]*(?:api[_-]?key|apikey|token|secret|passwo?rd|passwd|credential|authorization)[\w.-]*"
_SECRET_NAME = re.compile(rf"(?:^|[_.-])(?:{_NAME}|key)$", re.IGNORECASE)
# Names that look like secrets and are none: what a model does, not what opens a door.
_PUBLIC_NAMES = re.compile(
    r"(?:start|end|pad|unk|bos|eos|sep|cls|mask|pseudo|image_to)_token|token_width|token_ids|tokenizer|tokens",
    re.IGNORECASE,
)
_PATTERNS = (
    # https://user:password@host/path?key=value: user, password and everything after the question mark.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.I), rf"\g<1>{HIDDEN}@"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*", re.I), rf"\g<1>?{HIDDEN}"),
    (re.compile(r"(\bbearer\s+)\S+", re.I), rf"\g<1>{HIDDEN}"),
    (re.compile(rf"(?<![\w-])((?:--?)?{_NAME}\s*[=:]\s*)(?!\s)[^\s,;'\"]+", re.I), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk)-[\w-]{8,}|\b(?:hf|gh[op]|github_pat|glpat|xox[a-z])[_-][\w-]{8,}"), HIDDEN),
    (re.compile(r"\bAKIA[0-9A-Z]{12,}"), HIDDEN),
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Python and the packages that numbers may depend on, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_commit(folder: Path | None = None) -> dict[str, str | bool] | None:
    """Tercet's own commit, and whether tracked files differ from it; None where it does not run from git.

    `folder` is where the package is; given by tests.
    """
    folder = Path(tercet.__file__).parent if folder is None else folder
    # A package installed below somebody else's repository is not tracked by it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, str | int]:
    """The machine that the client ran on; without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    described: dict[str, str | int] = {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "cores": cores,
    }
    try:
        described["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return described
    if model := re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE):
        described["processor"] = model[1].strip()
    return described


def written_command(arguments: Iterable[str]) -> list[str]:
    """A command line as a report may show it: values of options that name a secret are hidden."""
    shown: list[str] = []
    hide = False
    for argument in arguments:
        if hide and not argument.startswith("--"):
            shown.append(HIDDEN)
            hide = False
            continue
        name, equals, _ = argument.partition("=")
        hide = _is_secret(name.lstrip("-"))
        if hide and equals:
            argument, hide = f"{name}={HIDDEN}", False
        shown.append(argument if HIDDEN in argument else hide_in(argument))
    return shown


def without_secrets(value: Any, name: str = "") -> Any:
    """JSON-like `value` with everything hidden that opens a door.

    Hidden are values whose name says so (`api_key`), user, password and query of addresses, keys of known
    form, and whatever an environment variable of such a name holds.
    """
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return HIDDEN if value and _is_secret(name) else hide_in(value)
    return value


def hide_in(text: str) -> str:
    """`text` with the secrets in it hidden."""
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _PUBLIC_NAMES.search(name)


def _environment_secrets() -> list[str]:
    # A short value is no secret, and would be found in ordinary words.
    return [value for name, value in os.environ.items() if len(value) >= 8 and _is_secret(name)]
