"""Loading a data set by name, and checking its files beforehand."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tercet.errors import DatasetError
from tercet.evaluation.datasets.files import MissingFiles, missing_pictures
from tercet.evaluation.datasets.registry import DATASETS, DatasetEntry, Size
from tercet.evaluation.values import Dataset

__all__ = ["DatasetCheck", "TaskSize", "check_dataset", "load_dataset"]

NAMED = 5
"""Missing pictures that an error names; it counts all."""


@dataclass(frozen=True)
class TaskSize:
    """The size of a task as found, and as its publishers made it."""

    task: str
    found: Size
    official: Size

    @property
    def known(self) -> bool:
        """Whether the official size is."""
        return None not in (self.official.queries, self.official.gallery)

    @property
    def differs(self) -> bool:
        """Whether a number differs from one that is known."""
        pairs = ((self.found.queries, self.official.queries), (self.found.gallery, self.official.gallery))
        return any(official is not None and found != official for found, official in pairs)

    def __str__(self) -> str:
        def words(what: str, found: int | None, official: int | None) -> str:
            if official is None:
                return f"{found:,} {what}"
            return f"{found:,} of officially {official:,} {what}"

        return (
            f"{self.task}: {words('queries', self.found.queries, self.official.queries)}, "
            f"{words('candidates', self.found.gallery, self.official.gallery)}"
        )


@dataclass(frozen=True)
class DatasetCheck:
    """What a data set's folder has.

    missing: every missing file and where it was looked for; annotations first: without all of them the
        pictures are not known.
    problem: what is wrong with a file that is there; None if nothing is.
    sizes: of the tasks; empty where the annotations could not be read.
    """

    name: str
    split: str
    root: Path
    missing: tuple[str, ...]
    problem: str | None
    sizes: tuple[TaskSize, ...]

    @property
    def complete(self) -> bool:
        """Whether it loads."""
        return not self.missing and self.problem is None

    @property
    def official(self) -> bool:
        """Whether it loads, and every task's official size is known and the one found."""
        return self.complete and all(size.known and not size.differs for size in self.sizes)

    def report(self, shown: int = 20) -> str:
        """All of it in words; of the missing files the first `shown` are named."""
        entry = DATASETS[self.name]
        lines = [f"{entry.title} ({self.split}) in {self.root}"]
        if self.missing:
            lines.append(f"MISSING: {len(self.missing):,} files")
            lines += [f"  {description}" for description in self.missing[:shown]]
            if len(self.missing) > shown:
                lines.append(f"  ... and {len(self.missing) - shown:,} more")
        if self.problem is not None:
            lines.append(f"UNUSABLE: {self.problem}")
        lines += [f"  {size}" for size in self.sizes]
        if unknown := [size.task for size in self.sizes if not size.known]:
            lines.append(f"No official size is known of {', '.join(unknown)}.")
        if warning := size_warning(self.sizes):
            lines.append(warning)
        if self.official:
            lines.append("Complete, and of the official size.")
        elif self.complete:
            lines.append("Complete: every file that the annotations name is there.")
        else:
            lines += [f"Expected: {entry.layout}.", f"Where to get it: {entry.source}."]
        return "\n".join(lines)

    __str__ = report


def load_dataset(name: str, root: Path | str, split: str | None = None, **options: str | int) -> Dataset:
    """Read a data set from its official files; every picture that it names is there.

    One that is not of the official size loads, and its protocol says so.

    Raises:
        DatasetError: there is no such data set, split or option; files or pictures are missing (the first few
            are named, all counted), or a file is not as published.
    """
    entry, split, settings = _resolve(name, split, options)
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}. Expected: {entry.layout}")
    try:
        dataset = entry.load(root, split, **settings)
    except MissingFiles as error:
        raise DatasetError(
            f"{entry.title} ({split}) lacks {len(error.missing)} files of annotations in {root}: "
            f"{'; '.join(error.missing)}. Expected: {entry.layout}. Where to get it: {entry.source}"
        ) from error
    if missing := missing_pictures(dataset.pictures):
        raise DatasetError(
            f"{entry.title} ({split}) in {root} lacks {len(missing):,} picture files, and a smaller set "
            f"would give other numbers: {', '.join(map(str, missing[:NAMED]))}"
            f"{' ...' if len(missing) > NAMED else ''}. "
            f"Expected: {entry.layout}. Where to get it: {entry.source}"
        )
    if warning := size_warning(_sizes(dataset, entry, split, settings)):
        return dataclasses.replace(dataset, protocol=f"{dataset.protocol} {warning}")
    return dataset


def check_dataset(
    name: str, root: Path | str, split: str | None = None, **options: str | int
) -> DatasetCheck:
    """Look which files of a data set are there, whether they can be read, and how large it is.

    Raises:
        DatasetError: there is no such data set, split or option.
    """
    entry, split, settings = _resolve(name, split, options)
    root = Path(root)
    if not root.is_dir():
        return DatasetCheck(name, split, root, (), f"there is no folder {root}", ())
    try:
        dataset = entry.load(root, split, **settings)
    except MissingFiles as error:
        return DatasetCheck(name, split, root, error.missing, None, ())
    except DatasetError as error:
        return DatasetCheck(name, split, root, (), str(error), ())
    missing = tuple(map(str, missing_pictures(dataset.pictures)))
    return DatasetCheck(name, split, root, missing, None, _sizes(dataset, entry, split, settings))


def size_warning(sizes: tuple[TaskSize, ...]) -> str | None:
    """A sentence that says which sizes are not the official ones; None if all are."""
    different = [str(size) for size in sizes if size.differs]
    if not different:
        return None
    return (
        f"NOT THE OFFICIAL SIZE: {'; '.join(different)}. The numbers cannot be compared with published ones."
    )


def _sizes(
    dataset: Dataset, entry: DatasetEntry, split: str, options: Mapping[str, str | int]
) -> tuple[TaskSize, ...]:
    official = entry.official_sizes(split, options)
    return tuple(
        TaskSize(
            task.name, Size(len(task.queries), len(task.gallery)), official.get(task.name, Size(None, None))
        )
        for task in dataset.tasks
    )


def _resolve(
    name: str, split: str | None, options: Mapping[str, str | int]
) -> tuple[DatasetEntry, str, dict[str, str | int]]:
    """The entry, the split, and every option's value."""
    if name not in DATASETS:
        raise DatasetError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    entry = DATASETS[name]
    if split is None:
        split = entry.splits[0]
    if split not in entry.splits:
        raise DatasetError(f"{entry.title} has no split {split!r}; it has {', '.join(entry.splits)}")
    if unknown := set(options) - set(entry.options):
        known = f"it has {', '.join(entry.options)}" if entry.options else "it has none"
        raise DatasetError(f"{entry.title} has no option {', '.join(sorted(unknown))}; {known}")
    settings: dict[str, str | int] = {}
    for key, option in entry.options.items():
        value = options.get(key, option.default)
        try:
            settings[key] = type(option.default)(value)
        except ValueError as error:
            raise DatasetError(f"{entry.title}: {key} must be a whole number, not {value!r}") from error
        if option.choices and settings[key] not in option.choices:
            raise DatasetError(
                f"{entry.title}: option {key} must be {' or '.join(option.choices)}, not {value!r}"
            )
    return entry, split, settings
