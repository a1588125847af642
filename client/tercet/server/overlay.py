"""The repository that Triton serves where engines were chosen: links to the user's, other configurations.

So the choice reaches Triton through the fields that every Triton understands, and the user's own files stay
as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["lay_out_repository"]


def lay_out_repository(
    folder: Path, repository: Path, configurations: Mapping[str, ModelConfig], engines: Mapping[str, str]
) -> None:
    """Make `folder` a repository with the models of `repository` and these configurations in place of theirs.

    `describe_lineup` tells of `engines`, by model, in its manifest.
    """
    folder.mkdir()
    for model in repository.resolve().iterdir():
        if model.name in configurations:
            link_all(folder / model.name, model, leave_out=("config.pbtxt", "configs"))
            text = text_format.MessageToString(configurations[model.name])
            (folder / model.name / "config.pbtxt").write_text(text)
        elif model.name == "describe_lineup" and (model / "1" / "lineup.json").is_file():
            link_all(folder / model.name, model, leave_out=("1",))
            link_all(folder / model.name / "1", model / "1", leave_out=("lineup.json", "__pycache__"))
            manifest = json.loads((model / "1" / "lineup.json").read_text())
            manifest["engines"] = dict(engines)
            (folder / model.name / "1" / "lineup.json").write_text(json.dumps(manifest, indent=1))
        else:
            (folder / model.name).symlink_to(model)


def link_all(folder: Path, original: Path, leave_out: tuple[str, ...]) -> None:
    """Make a folder of links to what is in another one."""
    folder.mkdir()
    for entry in original.iterdir():
        if entry.name not in leave_out:
            (folder / entry.name).symlink_to(entry)
