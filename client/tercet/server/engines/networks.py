"""Chooses engines for the networks of a repository and remembers, beside each graph, what was measured."""

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from tercet.errors import ServerStartError
from tercet.server.engines.choice import CHOICES, ENGINES, ONNXRUNTIME, Trial, choose
from tercet.server.engines.examples import ROWS
from tercet.server.engines.trials import Laboratory, TrialFailed
from tercet.server.repository import read_configuration
from tercet.server.runtime import processors

__all__ = ["Network", "choose_engines", "find_networks", "is_installed", "measure_engines"]

MANIFEST = Path("describe_lineup", "1", "lineup.json")
RECORD = "engine.json"
FORMAT = 2
# Wheels that bring an engine.
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino")
INSTALL = 'pip install "tercet[openvino]"'

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """A network of the lineup that ONNX Runtime would run on a processor: its role, graph, configuration."""

    role: str
    file: Path
    configuration: ModelConfig
    sha256: str

    @property
    def record(self) -> Path:
        """The file that remembers what was measured."""
        return self.file.parent / RECORD

    def key(self) -> dict[str, Any]:
        """What a measurement holds for: this graph, configured so, on this processor, with these packages."""
        status = self.file.stat()
        configured = self.configuration.SerializeToString(deterministic=True)
        return {
            "format": FORMAT,
            "graph": [self.sha256, status.st_size, status.st_mtime_ns],
            "configuration": hashlib.sha256(configured).hexdigest(),
            "processor": describe_processor(),
            "threads": int(os.environ.get("TERCET_THREADS") or processors()),
            "packages": {name: installed_version(name) for name in PACKAGES},
        }


def read_manifest(repository: Path) -> dict[str, Any]:
    """Read what the repository was filled with; nothing where no lineup was exported into it."""
    try:
        return json.loads((repository / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}


def find_networks(
    repository: Path, models: Iterable[str], config_name: str | None = None
) -> dict[str, Network]:
    """Return those of `models` whose engine is ours to choose, by name.

    They fill a role of the lineup and run on the processor; a configuration that has an accelerator already
    stays as it is.
    """
    roles = read_manifest(repository).get("roles", {})
    found: dict[str, Network] = {}
    for name in models:
        if name not in roles or name not in ROWS:
            continue
        configuration = read_configuration(repository / name, config_name)
        groups = configuration.instance_group
        on_cpu = groups and all(group.kind == ModelInstanceGroup.KIND_CPU for group in groups)
        settled = configuration.optimization.execution_accelerators.cpu_execution_accelerator
        file = repository / name / "1" / (configuration.default_model_filename or "model.onnx")
        if configuration.backend == "onnxruntime" and on_cpu and not settled and file.is_file():
            found[name] = Network(name, file, configuration, roles[name].get("onnx_sha256", ""))
    return found


def choose_engines(
    repository: Path, networks: Mapping[str, Network], wanted: str, tell: Tell, again: bool = False
) -> dict[str, Trial]:
    """Return the engine for each network: `wanted` itself, or the fastest that passes of those it allows.

    What is measured is kept beside the graph, so that it is measured once; `again` measures all the same.

    Raises:
        ServerStartError: no engine of that name, its package is not installed, or no engine of those that are
            wanted passes.
    """
    if wanted not in CHOICES:
        raise ServerStartError(f"there is no engine {wanted!r}: choose one of {', '.join(CHOICES)}")
    if wanted not in ("auto", ONNXRUNTIME) and not is_installed():
        raise ServerStartError(f"the engine {wanted} needs the package openvino: {INSTALL}")
    if wanted in ENGINES or not is_installed():
        return {name: Trial(wanted if wanted in ENGINES else ONNXRUNTIME) for name in networks}
    chosen: dict[str, Trial] = {}
    for name, trials in measure_engines(repository, networks, tell, again).items():
        trial = choose(trials, wanted)
        if trial is None:
            error = ServerStartError(f"{name} cannot run on {wanted}: choose the engine auto")
            for refused in trials:
                if refused.refused is not None:
                    error.add_note(f"  {refused}")
            raise error
        chosen[name] = trial
    return chosen


def measure_engines(
    repository: Path, networks: Mapping[str, Network], tell: Tell, again: bool = False
) -> dict[str, Sequence[Trial]]:
    """Return the trials of every engine on each network: those on record, and new ones where none are."""
    measured: dict[str, Sequence[Trial]] = {}
    for name, network in networks.items():
        trials = None if again else read_record(network)
        if trials is not None:
            measured[name] = trials
    missing = {name: network for name, network in networks.items() if name not in measured}
    if missing:
        manifest = read_manifest(repository)
        with (
            tempfile.TemporaryDirectory(prefix="tercet-engines-") as folder,
            Laboratory(Path(folder)) as room,
        ):
            for name, network in missing.items():
                tell(f"trying engines for {name} (once for this processor)")
                measured[name] = _measure(room, network, manifest, tell)
    return {name: measured[name] for name in networks}


def _measure(room: Laboratory, network: Network, manifest: Mapping[str, Any], tell: Tell) -> Sequence[Trial]:
    key = network.key()
    try:
        trials = room.try_engines(network.role, network.file, network.configuration, manifest)
    except TrialFailed as error:
        tell(f"no engines were tried for {network.role}: {error}")
        return [Trial(ONNXRUNTIME)]
    try:
        write_record(network, key, trials)
    except OSError as error:
        tell(f"what was measured could not be kept, and will be measured again: {error}")
    return trials


def read_record(network: Network) -> list[Trial] | None:
    """Return what was measured of this very network on this machine; None where nothing (readable) was."""
    try:
        record = json.loads(network.record.read_text())
        if record["key"] != network.key():
            return None
        return [Trial(**trial) for trial in record["trials"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(network: Network, key: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Keep what was measured beside the graph, whole or not at all."""
    record = {"key": key, "trials": [asdict(trial) for trial in trials]}
    with tempfile.NamedTemporaryFile("w", dir=network.file.parent, prefix=".engine-", delete=False) as file:
        try:
            json.dump(record, file, indent=1)
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(network.record)


def is_installed() -> bool:
    """Whether there is another engine than ONNX Runtime."""
    return any(installed_version(name) for name in ("openvino", "onnxruntime-openvino"))


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_processor() -> list[str]:
    """Return the processor's name and those of its instructions that engines differ by."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(told.get("flags", told.get("Features", "")).split())
    matter = {flag for flag in flags if flag.startswith(("avx", "amx", "sve", "bf16", "asimd"))}
    return [told.get("model name", platform.machine()), *sorted(matter)]
