"""Reading a data set's official files: finding them, checking their fields, and never leaving the folder."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tercet.errors import DatasetError
from tercet.evaluation.values import PictureSource

__all__ = [
    "Folders",
    "MissingFiles",
    "field",
    "find_files",
    "first_folder",
    "inside",
    "list_field",
    "missing_pictures",
    "numbers_field",
    "read_json",
    "read_list",
]

T = TypeVar("T")


class MissingFiles(DatasetError):
    """Files of a data set are not there; `missing` describes each and where it was looked for."""

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = tuple(missing)
        super().__init__("; ".join(self.missing))


def find_files(root: Path, **places: tuple[str, ...]) -> dict[str, Path]:
    """The first file that exists of each group of `places`, relative to the root.

    Raises:
        MissingFiles: groups of which none exists; all of them.
    """
    found = {
        name: next((root / place for place in group if (root / place).is_file()), None)
        for name, group in places.items()
    }
    missing = [
        " or ".join(str(root / place) for place in places[name])
        for name, path in found.items()
        if path is None
    ]
    if missing:
        raise MissingFiles(missing)
    return {name: path for name, path in found.items() if path is not None}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DatasetError: it is no JSON: with line and column.
    """
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "download the file again"
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; download the file again") from error


def read_list(path: Path) -> list[Any]:
    """The content of a JSON file that is a list.

    Raises:
        DatasetError: it is no JSON, or no list, or an empty one.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        found = "is empty" if content == [] else f"is a {type(content).__name__}"
        raise DatasetError(f"{path} must be a list of entries and {found}; download the file again")
    return content


def field(entry: Any, name: str, kind: type[T], where: str) -> T:
    """The field of an entry; `where` names the entry in errors.

    Raises:
        DatasetError: the entry is no object, has no such field, or one of another kind.
    """
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} must be an object, not a {type(entry).__name__}")
    if name not in entry:
        raise DatasetError(f"{where} has no field {name!r}; it has {', '.join(map(repr, entry)) or 'none'}")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DatasetError(
            f"{where}: field {name!r} must be of type {kind.__name__}, "
            f"not {type(value).__name__} ({value!r:.60})"
        )
    return value


def list_field(entry: Any, name: str, kind: type[T], where: str) -> list[T]:
    """The field of an entry that is a list whose elements are all of one kind.

    Raises:
        DatasetError: it is none.
    """
    values = field(entry, name, list, where)
    for number, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError(
                f"{where}: element {number} of field {name!r} must be of type {kind.__name__}, "
                f"not {type(value).__name__} ({value!r:.60})"
            )
    return values


def numbers_field(entry: Any, name: str, count: int, where: str) -> tuple[float, ...]:
    """The field of an entry that is a list of `count` finite numbers, whole or not.

    Raises:
        DatasetError: it is none.
    """
    values = field(entry, name, list, where)
    sound = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(values) != count or not sound or not all(map(math.isfinite, values)):
        raise DatasetError(f"{where}: field {name!r} must be {count} numbers, not {values!r:.80}")
    return tuple(map(float, values))


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file that official files name, which must lie in the folder.

    Raises:
        DatasetError: the name is absolute, goes up, or is no file name at all.
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    if not parts or path.is_absolute() or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        raise DatasetError(f"{where} names {name!r}, which is no file inside the data set's folder")
    return folder.joinpath(*parts)


class Folders:
    """Which files exist, from one listing of each folder: fast for a hundred thousand pictures."""

    def __init__(self) -> None:
        self._listed: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether the file exists."""
        folder = path.parent
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return path.name in self._listed[folder]

    def first(self, *paths: Path) -> Path:
        """The first that exists; the first of all where none does."""
        return next((path for path in paths if self.has(path)), paths[0])


def first_folder(*folders: Path) -> Path:
    """The first folder that exists; the first of all where none does."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def missing_pictures(pictures: Mapping[str, PictureSource]) -> tuple[Path, ...]:
    """The files of pictures that do not exist, each once, sorted."""
    folders = Folders()
    paths = {source.path for source in pictures.values()}
    return tuple(sorted(path for path in paths if not folders.has(path)))
