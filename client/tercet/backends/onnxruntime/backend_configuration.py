"""What a model's configuration says, read and compared with the graph as Triton's C++ backend does.

Part of the Python onnxruntime backend (`model.py`); self-contained: the standard library only.
"""

from pathlib import Path
from typing import Any

ELEMENT_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
DEFAULT_MAX_BATCH_SIZE = 4
# Features of Triton that the C++ backend has and this one has not.
UNSUPPORTED = ("sequence_batching", "batch_input", "batch_output", "cc_model_filenames")
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class ConfigurationError(Exception):
    """The configuration asks for what this backend cannot do; the model is not loaded."""


def require(condition: bool, message: str) -> None:
    """Refuse the configuration unless `condition` holds."""
    if not condition:
        raise ConfigurationError(message)


def model_file(model_folder: str, version: str, config: dict[str, Any]) -> Path:
    """Return the graph: `model.onnx`, or what the configuration names; a folder holds a `model.onnx`."""
    file = Path(model_folder) / version / (config.get("default_model_filename") or "model.onnx")
    file = file / "model.onnx" if file.is_dir() else file
    require(file.is_file(), f"unable to find '{file}' for model '{config['name']}'")
    return file


def parameter(config: dict[str, Any], name: str) -> str | None:
    """Return the value of a parameter of the configuration, None where it is not given."""
    entry = config.get("parameters", {}).get(name)
    return None if entry is None else str(entry["string_value"])


def integer(config: dict[str, Any], name: str) -> int:
    """Return a parameter that is an integer, 0 where it is not given."""
    text = parameter(config, name)
    try:
        return 0 if text is None else int(text)
    except ValueError as error:
        raise ConfigurationError(f"parameter {name} must be an integer, not '{text}'") from error


def boolean(config: dict[str, Any], name: str) -> bool | None:
    """Return a parameter that is true or false, None where it is not given."""
    text = parameter(config, name)
    if text is None:
        return None
    require(text.lower() in BOOLEANS, f"parameter {name} must be true or false, not '{text}'")
    return BOOLEANS[text.lower()]


def choice(config: dict[str, Any], name: str, values: list[str]) -> str:
    """Return the value that a parameter, an index into `values`, chooses (the first if it is not given)."""
    index = integer(config, name)
    last = len(values) - 1
    require(0 <= index <= last, f"parameter {name} must be between 0 and {last}, not {index}")
    return values[index]


def graph_dims(node: Any) -> list[int]:
    """Return the dimensions of a graph's input or output, -1 for a dynamic one."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]


def check_tensors(config: dict[str, Any], kind: str, nodes: dict[str, Any]) -> None:
    """Compare the inputs or outputs (`kind`) of configuration and graph, as strictly as the C++ backend.

    A fixed dimension of the graph must be the same number in the configuration, and a dynamic one of an
    output must be -1; a dynamic one of an input may be any.
    """
    batched = config["max_batch_size"] > 0
    for tensor in config[kind]:
        name = tensor["name"]
        allowed = ", ".join(nodes)
        require(name in nodes, f"unexpected inference {kind} '{name}', allowed {kind}s are: {allowed}")
        given, wanted = ELEMENT_TYPES.get(nodes[name].type, nodes[name].type), tensor["data_type"]
        require(
            given == wanted,
            f"configuration expects datatype {wanted} for {kind} '{name}', model provides {given}",
        )
        require(
            not tensor.get("allow_ragged_batch"),
            f"{kind} '{name}': allow_ragged_batch is not supported by the Python backend",
        )
        require(
            not (tensor.get("optional") and batched),
            f"optional input '{name}' is not supported for models that support batching",
        )
        dims = [int(size) for size in (tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"])]
        check_dims(name, graph_dims(nodes[name]), [-1, *dims] if batched else dims, exact=kind == "output")


def check_dims(name: str, graph: list[int], configured: list[int], exact: bool) -> None:
    """Raise unless a tensor's dimensions in the configuration (with the batch) suit those of the graph."""
    if not graph and all(size == 1 for size in configured):
        return  # a scalar, which a configuration can only write as [1]
    fits = len(graph) == len(configured) and all(
        ours == theirs or (theirs == -1 and not exact) for ours, theirs in zip(configured, graph, strict=True)
    )
    require(
        fits,
        f"tensor '{name}': the model's shape is {graph} but the configuration says {configured}"
        " (with the batch in front where max_batch_size > 0); Triton's C++ backend refuses this too: "
        "write the graph's sizes in config.pbtxt, or make the dimension dynamic in the graph",
    )


def complete(config: dict[str, Any], session: Any) -> None:
    """Fill in what the configuration leaves out (inputs, outputs, batching), by the C++ backend's rules."""
    nodes = {"input": session.get_inputs(), "output": session.get_outputs()}
    batchable = all(graph_dims(node)[:1] == [-1] for node in [*nodes["input"], *nodes["output"]])
    require(
        batchable or config["max_batch_size"] == 0,
        "autofill failed: model does not support batching while non-zero max_batch_size is specified",
    )
    if batchable and config["max_batch_size"] == 0:
        config["max_batch_size"] = DEFAULT_MAX_BATCH_SIZE
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})
    batched = config["max_batch_size"] > 0
    for kind, graph in nodes.items():
        config[kind] = config.get(kind) or [complete_tensor(node, batched) for node in graph]


def complete_tensor(node: Any, batched: bool) -> dict[str, Any]:
    """Return the configuration of one tensor of the graph."""
    dims = graph_dims(node)[1 if batched else 0 :]
    tensor = {"name": node.name, "data_type": ELEMENT_TYPES.get(node.type, node.type), "dims": dims or [1]}
    return {**tensor, "reshape": {"shape": []}} if batched and not dims else tensor
