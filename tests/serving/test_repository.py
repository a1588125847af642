"""The hand-written configurations: Triton's schema, the design's tensors, the rules of its ensembles."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy
from tritonclient.utils import np_to_triton_dtype

from tercet_export.roles import ROLES
from tests.serving.python_models import REPOSITORY

PYTHON = {"decode_image", "tokenize_text", "detokenize_caption", "describe_lineup"}
# Each ensemble begins with one of them, and they alone may refuse a request.
FIRST_STEPS = ("decode_image", "tokenize_text")
ENSEMBLES = {
    "caption_foreground": ({"image"}, {"caption", "score", "foreground", "mask"}),
    "caption_image": ({"image"}, {"caption", "score"}),
    "embed_image": ({"image"}, {"embedding"}),
    "image_token": ({"image"}, {"pseudo_token"}),
    "embed_text": ({"text"}, {"embedding", "token_count"}),
    "embed_text_with_token": ({"text", "pseudo_token"}, {"embedding", "token_count"}),
}
# configs/torchscript.pbtxt: tests/export/test_torchscript_export.py.
VARIANTS = sorted(file for name in ("gpu", "tensorrt") for file in REPOSITORY.glob(f"*/configs/{name}.pbtxt"))
FILES = [*sorted(REPOSITORY.glob("*/config.pbtxt")), *VARIANTS]

# What our variants say of TensorRT, by the names in the C++ backend's README; it refuses any other.
TENSORRT_PARAMETERS = {
    "precision_mode",
    "trt_layer_norm_fp32_fallback",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
}

# A tensor: its type as Triton calls it, and its dimensions without the batch (a symbol or -1 is any number).
Tensor = tuple[str, tuple[int | str, ...]]


def parse(file: Path) -> ModelConfig:
    """The configuration; text_format.ParseError names a field that Triton does not know."""
    return text_format.Parse(file.read_text(), ModelConfig())


CONFIGS = {file.parent.name: parse(file) for file in FILES if file not in VARIANTS}


def type_name(data_type: int) -> str:
    name = DataType.Name(data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def tensors(model: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs: of a role as the export declares them, of any other model as it is configured."""
    if model in ROLES:
        role = ROLES[model]
        inputs, outputs = (
            {t.name: (np_to_triton_dtype(np.dtype(t.dtype)), t.dims[1:]) for t in given}
            for given in (role.inputs, role.outputs)
        )
        return inputs, outputs
    config = CONFIGS[model]
    inputs, outputs = (
        {t.name: (type_name(t.data_type), tuple(t.dims)) for t in given}
        for given in (config.input, config.output)
    )
    return inputs, outputs


def fits(left: Tensor, right: Tensor) -> bool:
    """Whether one tensor can be the other: of one type, and equal wherever both dimensions are numbers."""
    open_or_equal = (
        a == b or isinstance(a, str) or isinstance(b, str) or -1 in (a, b)
        for a, b in zip(left[1], right[1], strict=False)
    )
    return left[0] == right[0] and len(left[1]) == len(right[1]) and all(open_or_equal)


def test_there_is_a_model_for_every_role_python_model_and_ensemble() -> None:
    assert CONFIGS.keys() == ROLES.keys() | PYTHON | ENSEMBLES.keys()


def test_an_unknown_field_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("max_batch_sise: 4")
    with pytest.raises(text_format.ParseError, match="max_batch_sise"):
        parse(tmp_path / "config.pbtxt")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_each_file_says_what_triton_would_else_choose(file: Path) -> None:
    config = parse(file)
    model = file.relative_to(REPOSITORY).parts[0]
    assert config.name in ("", model)
    if model in ENSEMBLES:
        assert config.platform == "ensemble"
        # Triton refuses these in an ensemble.
        assert not config.instance_group
        assert not config.HasField("dynamic_batching")
        return
    assert config.backend == ("onnxruntime" if model in ROLES else "python")
    assert len(config.instance_group) == 1
    assert config.instance_group[0].count >= 1
    kind = ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
    assert kind == ("KIND_GPU" if file in VARIANTS and model in ROLES else "KIND_CPU")
    if config.max_batch_size:
        assert config.max_batch_size > 1
        assert config.HasField("dynamic_batching")
        # A policy of any kind keeps Triton from preparing a batch while another is computed (and it may then
        # sleep half a second over a request): only those have one that must be able to refuse.
        policy = config.dynamic_batching.default_queue_policy
        assert config.dynamic_batching.HasField("default_queue_policy") == (model in FIRST_STEPS)
        if model in FIRST_STEPS:
            assert policy.max_queue_size > 0
            assert policy.timeout_action == ModelQueuePolicy.TimeoutAction.Value("REJECT")
            # A client's timeout is ignored unless it is allowed and shorter than this one.
            assert policy.allow_timeout_override
            assert policy.default_timeout_microseconds > 0
    # Its first line says what it is for.
    assert re.match(r"# \w.{20,}", file.read_text())


@pytest.mark.parametrize("model", ROLES)
def test_a_role_leaves_its_tensors_to_the_graph(model: str) -> None:
    # The backend refuses an open dimension where the graph's is a number, and the numbers are the lineup's.
    for file in (file for file in FILES if file.relative_to(REPOSITORY).parts[0] == model):
        config = parse(file)
        assert not config.input
        assert not config.output
        assert not config.platform


@pytest.mark.parametrize("file", VARIANTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_variant_differs_in_scheduling_alone(file: Path) -> None:
    variant, original = parse(file), ModelConfig()
    original.CopyFrom(CONFIGS[file.relative_to(REPOSITORY).parts[0]])
    assert variant.max_batch_size >= original.max_batch_size
    for config in (variant, original):
        for field in ("instance_group", "dynamic_batching", "max_batch_size", "parameters"):
            config.ClearField(field)
    if file.name == "tensorrt.pbtxt":
        variant.ClearField("optimization")
    assert variant == original


def test_fixed_batch_sizes_end_with_the_largest_batch() -> None:
    for file in VARIANTS:
        variant = parse(file)
        if "fixed_batch_sizes" in variant.parameters:
            sizes = variant.parameters["fixed_batch_sizes"].string_value
            assert int(sizes.split(",")[-1]) == variant.max_batch_size, file


@pytest.mark.parametrize("model", sorted({file.relative_to(REPOSITORY).parts[0] for file in VARIANTS}))
def test_tensorrt_is_the_variant_for_gpus_and_an_accelerator_for_batches_that_are_served(model: str) -> None:
    tensorrt, gpu = (parse(REPOSITORY / model / "configs" / f"{name}.pbtxt") for name in ("tensorrt", "gpu"))
    accelerators = list(tensorrt.optimization.execution_accelerators.gpu_execution_accelerator)
    tensorrt.ClearField("optimization")
    gpu.parameters.pop("fixed_batch_sizes", None)  # of the embedded server, which has no TensorRT
    assert tensorrt == gpu
    assert bool(accelerators) == (model in ("background_remover", "clip_image"))
    for accelerator in accelerators:
        assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", "FP16")
        unknown = accelerator.parameters.keys() - TENSORRT_PARAMETERS
        assert not unknown
        batches = []
        for end in ("min", "opt", "max"):
            ranges = accelerator.parameters[f"trt_profile_{end}_shapes"].split(",")
            shapes = {name: sides.split("x") for name, _, sides in (entry.partition(":") for entry in ranges)}
            assert list(shapes) == [tensor.name for tensor in ROLES[model].inputs]
            for tensor in ROLES[model].inputs:
                fixed = zip(shapes[tensor.name], tensor.dims, strict=True)
                assert all(size == str(dim) for size, dim in fixed if isinstance(dim, int))
            batches.append({int(sides[0]) for sides in shapes.values()})
        assert (batches[0], batches[2]) == ({1}, {tensorrt.max_batch_size})


def test_ensembles_offer_what_the_design_says() -> None:
    for name, (inputs, outputs) in ENSEMBLES.items():
        given, made = tensors(name)
        assert (given.keys(), made.keys()) == (inputs, outputs), name


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_neighbours_fit(ensemble: str) -> None:
    inputs, outputs = tensors(ensemble)
    flowing = dict(inputs)
    for step in CONFIGS[ensemble].ensemble_scheduling.step:
        given, made = tensors(step.model_name)
        optional = {t.name for t in CONFIGS[step.model_name].input if t.optional}
        assert given.keys() - optional <= step.input_map.keys() <= given.keys(), step.model_name
        for name, tensor in step.input_map.items():
            assert fits(given[name], flowing[tensor]), (step.model_name, name)
        for name, tensor in step.output_map.items():
            assert tensor not in flowing, (step.model_name, tensor)
            flowing[tensor] = made[name]
        assert CONFIGS[step.model_name].max_batch_size >= CONFIGS[ensemble].max_batch_size, step.model_name
    for name, tensor in outputs.items():
        assert fits(tensor, flowing[name]), name


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_an_ensemble_keeps_clear_of_the_faults_of_triton_24_10(ensemble: str) -> None:
    config = CONFIGS[ensemble]
    steps = list(config.ensemble_scheduling.step)
    outputs = {t.name for t in config.output}
    read = [tensor for step in steps for tensor in step.input_map.values()]
    made = {tensor: place for place, step in enumerate(steps) for tensor in step.output_map.values()}
    # Every input enters at the first step, and only there.
    assert set(steps[0].input_map.values()) == {t.name for t in config.input}
    for place, step in enumerate(steps[1:], start=1):
        # A line: each step reads the one before, and none but earlier ones.
        places = {made[tensor] for tensor in step.input_map.values()}
        assert place - 1 in places
        assert max(places) < place
        # No later step may refuse a request.
        assert step.model_name not in FIRST_STEPS
    assert steps[0].model_name in FIRST_STEPS
    # An output is read by no step; what is no output is read by one (Triton refuses it otherwise).
    assert outputs.isdisjoint(read)
    assert made.keys() - outputs <= set(read)
    assert outputs <= made.keys()


def test_the_exported_graphs_are_what_the_configurations_expect(tiny_repository: Path) -> None:
    for name in ROLES:
        graph = onnx.load(tiny_repository / name / "1" / "model.onnx", load_external_data=False).graph
        for declared, values in zip(tensors(name), (graph.input, graph.output), strict=True):
            assert [value.name for value in values] == list(declared), name
            for value in values:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                dims = [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
                assert isinstance(dims[0], str), f"{name}: the batch of {value.name} is fixed"
                assert fits((np_to_triton_dtype(dtype), tuple(dims[1:])), declared[value.name]), value.name
