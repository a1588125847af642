"""The engines that there are, what came of trying one, and which to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

ONNXRUNTIME = "onnxruntime"

# Each engine, the most exact first, and its parameters as an accelerator; None: it is none.
ENGINES: Mapping[str, Mapping[str, str] | None] = MappingProxyType(
    {
        ONNXRUNTIME: None,
        "openvino-f32": {"INFERENCE_PRECISION_HINT": "f32"},
        "openvino-bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
        # Of the rest of the network nothing is rounded: to do so gains nothing.
        "openvino-int8": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"},
    }
)

# What a user may ask for: `auto` and `openvino` are the fastest that passes, of all and of OpenVINO's.
CHOICES = ("auto", "openvino", *ENGINES)

# A less exact engine must be so much faster than a more exact one, and save so many seconds a row.
WORTH = 1.1
LEAST_SAVING = 1e-4


@dataclass(frozen=True)
class Trial:
    """What came of one engine on one network, beside ONNX Runtime in fp32 in the same rounds.

    `seconds` for one row, and ONNX Runtime's (`baseline`), each the best of the rounds; `distances`: how far
    each output is from ONNX Runtime's, in the measure of its limit (see `gate`). `refused` says why the
    engine cannot be taken, None where it can; what was not measured is then missing.
    """

    engine: str
    seconds: float | None = None
    baseline: float | None = None
    distances: Mapping[str, float] = field(default_factory=dict)
    refused: str | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast as ONNX Runtime; 1 where that was not measured."""
        return 1.0 if self.seconds is None or self.baseline is None else self.baseline / self.seconds

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.engine}: {self.refused}"
        if self.seconds is None:
            return self.engine
        return f"{self.engine}, {self.speedup:.1f} times as fast as {ONNXRUNTIME}"


def choose(trials: Sequence[Trial], wanted: str = "auto") -> Trial | None:
    """Return the trial of the engine to take of those that `wanted` allows; None where none of them passed.

    The most exact one, unless a less exact one is faster by a margin that is more than noise.
    """
    order = list(ENGINES)
    allowed = [trial for trial in trials if wanted == "auto" or trial.engine.startswith(wanted)]
    best: Trial | None = None
    for trial in sorted(allowed, key=lambda trial: order.index(trial.engine)):
        if trial.refused is None and (best is None or _is_worth(trial, best)):
            best = trial
    return best


def _is_worth(trial: Trial, best: Trial) -> bool:
    """Whether one engine is so much faster than a more exact one that it is the better choice."""
    if trial.baseline is None:
        return False
    saved = trial.baseline / best.speedup - trial.baseline / trial.speedup
    return trial.speedup > WORTH * best.speedup and saved > LEAST_SAVING
