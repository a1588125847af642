"""What a Triton says of itself: the models it serves, what ensembles consist of, and its counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from tercet.bench import processes
from tercet.bench.values import Stage
from tercet.errors import ServerUnreachable
from tercet.transport import channel_options, translate_error

__all__ = ["Counters", "Server", "stages"]

LOCAL = frozenset({"describe_lineup"})
"""Models that take no part in answering a picture or text."""


@dataclass(frozen=True)
class Counters:
    """What Triton has counted of one model since it started; times are nanoseconds, summed over requests."""

    requests: int = 0  # that succeeded
    failed: int = 0
    inferences: int = 0  # rows
    executions: int = 0  # batches
    total: int = 0
    queue: int = 0
    input: int = 0
    infer: int = 0
    output: int = 0

    def __sub__(self, earlier: Self) -> "Counters":
        return Counters(
            *(getattr(self, entry.name) - getattr(earlier, entry.name) for entry in fields(Counters))
        )


@dataclass(frozen=True)
class Step:
    """One model of an ensemble, and which of its outputs the ensemble asks for."""

    model: str
    outputs: frozenset[str]
    network: bool


class Server:
    """One Triton, asked about itself over gRPC; TercetError where it does not answer."""

    def __init__(self, address: str, timeout: float = 60.0) -> None:
        from tritonclient import grpc

        self.address = address
        self._timeout = timeout
        self._client = grpc.InferenceServerClient(address, channel_args=channel_options(address))
        self._configurations: dict[str, Any] = {}
        host, _, port = address.rpartition(":")
        root = processes.listener(int(port)) if port.isdecimal() and processes.is_here(host) else None
        self.processes = None if root is None else processes.tree(root)
        """Triton and its models' processes, where they are on this machine."""

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def counters(self) -> dict[str, Counters]:
        """The counters of every model that is served; of a model's versions, all together."""
        found: dict[str, Counters] = {}
        for model in self._ask("get_inference_statistics").model_stats:
            of = model.inference_stats
            counted = (
                of.success.count,
                of.fail.count,
                model.inference_count,
                model.execution_count,
                of.success.ns,
                of.queue.ns,
                of.compute_input.ns,
                of.compute_infer.ns,
                of.compute_output.ns,
            )
            earlier = found.get(model.name, Counters())
            found[model.name] = earlier - (Counters() - Counters(*counted))
        return found

    def version(self) -> str:
        """Triton's version."""
        return self._ask("get_server_metadata").version

    def steps(self, model: str) -> list[Step]:
        """What an ensemble consists of, in its order; none for any other model."""
        return [
            Step(
                step.model_name,
                frozenset(step.output_map),
                self._configuration(step.model_name).backend == "onnxruntime",
            )
            for step in self._configuration(model).ensemble_scheduling.step
        ]

    def _configuration(self, model: str) -> Any:
        if model not in self._configurations:
            self._configurations[model] = self._ask("get_model_config", model).config
        return self._configurations[model]

    def _ask(self, method: str, model: str = "") -> Any:
        from tritonclient.utils import InferenceServerException

        arguments = (model,) if model else ()
        try:
            return getattr(self._client, method)(*arguments, client_timeout=self._timeout)
        except InferenceServerException as error:
            translated = translate_error(error, model, {}, self.address, self._timeout)
            if "restricted" in str(error):
                raise ServerUnreachable(
                    f"the server at {self.address} keeps its statistics to itself ({error.message()}); allow "
                    "the protocol `statistics` (--grpc-restricted-protocol), or measure behind its gateway"
                ) from error
            raise translated from error


def stages(
    models: Sequence[str],
    once: bool,
    earlier: Mapping[str, Counters],
    later: Mapping[str, Counters],
    answers: int,
) -> tuple[Stage, ...]:
    """What each of `models` spent for each of the `answers` between two readings of the counters.

    `once`: each is asked once for an answer, so that its mean time a request is the time an answer, and what
    is under way at either reading does not matter.
    """
    found = []
    for model in models:
        spent = later.get(model, Counters()) - earlier.get(model, Counters())
        if spent.requests:
            each = spent.requests if once else answers
            spans = (spent.queue, spent.input, spent.infer, spent.output)
            batch = spent.inferences / spent.executions if spent.executions else 1.0
            times = (span / each / 1e6 for span in spans)
            found.append(Stage(model, spent.requests / answers, batch, *times))
    return tuple(found)
