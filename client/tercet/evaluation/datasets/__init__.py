"""The field's data sets, read from their official files.

`load_dataset("cirr", "/data/cirr", "val")` gives a `Dataset`; `check_dataset` says what is missing before.
"""

from tercet.evaluation.datasets.loading import DatasetCheck, TaskSize, check_dataset, load_dataset
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.datasets.registry import DATASETS, DatasetEntry, Option, Size

__all__ = [
    "DATASETS",
    "DatasetCheck",
    "DatasetEntry",
    "Option",
    "Size",
    "TaskSize",
    "check_dataset",
    "load_dataset",
    "tie_order",
]
