"""The embedded server: it starts, says why when it cannot, and leaves nothing behind however it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from tercet.errors import ServerError, ServerStartError
from tercet.server import EmbeddedServer, guard, runtime
from tercet.server.repository import select_models
from tests.serving.graphs import CPU, DOUBLE, double, write_model

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling { step { model_name: "%s" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model, `double`."""
    folder = tmp_path / "model repository"  # a space, which Triton alone does not bear
    write_model(folder, "double", double(), DOUBLE + CPU)
    return folder


def ask(server: EmbeddedServer, model: str = "double") -> np.ndarray:
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    tensor = grpc.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    with grpc.InferenceServerClient(server.grpc_address) as client:
        return client.infer(model, [tensor]).as_numpy("y")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def left_behind(name: str) -> list[str]:
    """Processes, shared memory and files whose name holds `name`, the runtime folder's."""
    processes = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_text() if entry.name.isdecimal() else ""
        except OSError:
            continue
        if name in command and entry.name != str(os.getpid()):
            processes.append(command.replace("\0", " "))
    files = [*Path("/dev/shm").glob(f"*{name}*"), *Path(runtime._temporary_folder()).glob(f"*{name}*")]
    return processes + [str(file) for file in files]


def runtime_name(server: EmbeddedServer) -> str:
    assert server.runtime is not None
    return server.runtime.name


def wait_until(condition: object, seconds: float = 20) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_serves_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    lines: list[str] = []
    log = tmp_path / "triton.log"
    server = EmbeddedServer(
        repository, progress=lambda *told: seen.append(told), log_file=log, on_log=lines.append
    )
    with server:
        np.testing.assert_array_equal(ask(server), [[0, 2, 4]])
        assert server.models == ("double",)
        assert seen == [("double", 1, 1)]
        assert wait_until(lambda: any("successfully loaded 'double'" in line for line in lines))
        name = next(line for line in lines if "model_repository_path" in line).split("/")[-2]
        assert name.startswith(runtime.PREFIX)
        assert len(left_behind(name)) > 3
        server.check()
    assert left_behind(name) == []
    assert lines == log.read_text().splitlines()
    server.stop()
    with pytest.raises(ServerError, match="does not run"):
        server.check()


def test_only_this_machine_reaches_it_and_nobody_its_controls(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
        rows = [
            row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]
        ]
        listening = [local for _, local, _, state, *_ in rows if state == "0A"]
        for address in (server.grpc_address, server.http_address, server.metrics_address):
            port = int(address.split(":")[1])
            hosts = [entry.split(":")[0] for entry in listening if entry.endswith(f":{port:04X}")]
            assert len(hosts) == 1
            assert hosts[0].endswith("0100007F")  # 127.0.0.1, or that mapped into IPv6
        with grpc.InferenceServerClient(server.grpc_address) as client:
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                client.load_model("double")
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                client.register_system_shared_memory("mine", "/any", 1)
        request = urllib.request.Request(
            f"http://{server.http_address}/v2/repository/models/double/unload", data=b"{}", method="POST"
        )
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=5)
        np.testing.assert_array_equal(ask(server), [[0, 2, 4]])
        counted, deadline = 'nv_inference_count{model="double",version="1"} 1', time.monotonic() + 20
        while counted not in (metrics := read(f"http://{server.metrics_address}/metrics")):
            assert time.monotonic() < deadline, metrics
            time.sleep(0.1)  # Triton counts after it has answered


def read(address: str) -> str:
    """What lies at an address."""
    content: bytes = urllib.request.urlopen(address, timeout=5).read()
    return content.decode()


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named_before_anything_starts(repository: Path, service: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(ServerStartError, match=rf"port {port}.*taken"):
            EmbeddedServer(repository, **{f"{service}_port": port}).start()
        assert time.monotonic() - began < 2


def test_a_chosen_port_is_used_and_a_named_configuration_too(repository: Path) -> None:
    (repository / "double" / "configs").mkdir()
    small = (
        (repository / "double" / "config.pbtxt").read_text().replace("max_batch_size: 8", "max_batch_size: 2")
    )
    (repository / "double" / "configs" / "small.pbtxt").write_text(small)
    port = free_port()
    for name, size in {"small": 2, "absent": 8}.items():
        with (
            EmbeddedServer(repository, grpc_port=port, model_config_name=name) as server,
            grpc.InferenceServerClient(f"127.0.0.1:{port}") as client,
        ):
            assert client.get_model_config("double").config.max_batch_size == size
            ask(server)


def test_a_host_that_is_not_ours_is_refused(repository: Path) -> None:
    with pytest.raises(ServerStartError, match=r"cannot listen on 192\.0\.2\.1"):
        EmbeddedServer(repository, host="192.0.2.1").start()


def test_missing_and_empty_repositories(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"no model repository at .*nothing"):
        EmbeddedServer(tmp_path / "nothing").start()
    with pytest.raises(ServerStartError, match="holds no model"):
        EmbeddedServer(tmp_path).start()


def test_models_without_weights_and_their_ensembles_are_left_out(repository: Path) -> None:
    write_model(repository, "hollow", double(), DOUBLE).unlink()
    for name, step in {"good_ensemble": "double", "bad_ensemble": "hollow", "odd_ensemble": "absent"}.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(ENSEMBLE % step)
    with EmbeddedServer(repository) as server:
        assert set(server.models) == {"double", "good_ensemble"}
        assert set(server.left_out) == {"hollow", "bad_ensemble", "odd_ensemble"}
        assert "hollow/1/model.onnx is missing" in server.left_out["bad_ensemble"]
        assert "no model absent" in server.left_out["odd_ensemble"]
        np.testing.assert_array_equal(ask(server, "good_ensemble"), [[0, 2, 4]])
    chosen = select_models(repository, ("good_ensemble",))
    assert chosen.models == ("double", "good_ensemble")
    with pytest.raises(ServerStartError, match="cannot serve") as failed:
        select_models(repository, ("double", "hollow"))
    assert failed.value.__notes__ == [
        "  hollow: hollow/1/model.onnx is missing: fill the repository (tercet-export lineup)"
    ]


def test_a_broken_model_is_named_with_its_reason(repository: Path) -> None:
    (repository / "double" / "1" / "model.onnx").write_bytes(b"not a graph")
    server = EmbeddedServer(repository)
    with pytest.raises(ServerStartError, match="cannot load double") as failed:
        server.start()
    assert "model.onnx failed:" in failed.value.__notes__[0]
    assert "Traceback" not in failed.value.__notes__[0]
    assert "\\n" not in failed.value.__notes__[0]
    assert not server.running


def test_a_broken_configuration_names_the_file_and_line(repository: Path) -> None:
    (repository / "double" / "config.pbtxt").write_text("max_batch_size: 8\nfrobnicate: 3\n")
    with pytest.raises(ServerStartError, match=r"double/config\.pbtxt.*frobnicate"):
        EmbeddedServer(repository).start()


def test_a_model_name_that_a_shell_would_take_apart_is_refused(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "x;touch pwned", double(), DOUBLE)
    with pytest.raises(ServerStartError, match="cannot serve") as failed:
        EmbeddedServer(repository, models=["x;touch pwned"]).start()
    assert "rename the folder" in failed.value.__notes__[0]


def test_models_find_the_packages_that_we_find(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "only_on_pythonpath.py").write_text("factor = 3")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "extra"))
    model = repository / "triple"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('backend: "python"' + DOUBLE + CPU)
    (model / "1" / "model.py").write_text(TRIPLE)
    with EmbeddedServer(repository) as server:
        np.testing.assert_array_equal(ask(server, "triple"), [[0, 3, 6]])


TRIPLE = """
import only_on_pythonpath
import pytest, numpy
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        factor = numpy.float32(only_on_pythonpath.factor)
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array * factor)]) for array in arrays]
"""


def test_too_little_time_is_said(repository: Path) -> None:
    with pytest.raises(ServerStartError, match=r"not ready within 0\.01 s: double"):
        EmbeddedServer(repository, timeout=0.01).start()


def test_numpy_2_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(ServerStartError, match=r'NumPy 2\.1\.0.*"numpy<2"'):
        EmbeddedServer(repository).start()


def test_too_little_shared_memory_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LEAST_SHARED_MEMORY", 2**60)
    with pytest.raises(ServerStartError, match="--shm-size"):
        EmbeddedServer(repository).start()


def test_a_python_without_shared_library_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    with pytest.raises(ServerStartError, match=r"libpython3\.\d+\.so\.1\.0.*apt install libpython3"):
        EmbeddedServer(repository).start()


def test_start_twice_in_parallel(repository: Path) -> None:
    servers = [EmbeddedServer(repository) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        try:
            list(pool.map(EmbeddedServer.start, servers))
            # The threads that started them end here; the servers must not.
            pool.shutdown()
            names = [runtime_name(server) for server in servers]
            for server in servers:
                np.testing.assert_array_equal(ask(server), [[0, 2, 4]])
        finally:
            for server in servers:
                server.stop()
    assert [left for name in names for left in left_behind(name)] == []


def test_a_killed_model_process_is_noticed(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        name = runtime_name(server)
        _, stub = server.processes()
        os.kill(stub, signal.SIGKILL)
        with pytest.raises(ServerError, match="process of a model was killed"):
            wait_until(lambda: server.check(), 3)
    assert left_behind(name) == []


OWNER = """
import sys, time
from tercet.server import EmbeddedServer
with EmbeddedServer(sys.argv[1]) as server:
    print(server.runtime.name, server._guard.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(repository: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Another process that runs a server: the process, its runtime folder's name, and the guard's process."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(repository)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name, guard_process = process.stdout.readline().split()
    yield process, name, int(guard_process)
    process.kill()
    process.wait()


def test_nothing_is_left_when_the_owner_is_killed(owner: tuple[subprocess.Popen[str], str, int]) -> None:
    process, name, _ = owner
    process.kill()
    assert wait_until(lambda: left_behind(name) == []), left_behind(name)


@pytest.mark.parametrize("victim", ["triton", "guard"])
def test_nothing_runs_on_when_triton_or_the_guard_is_killed(
    owner: tuple[subprocess.Popen[str], str, int], victim: str, repository: Path
) -> None:
    process, name, guard_process = owner
    (triton,) = guard.children(guard_process)
    os.kill(triton if victim == "triton" else guard_process, signal.SIGKILL)
    assert wait_until(lambda: guard.ended(triton) and guard.ended(guard_process))
    process.kill()
    process.wait()
    # What is left then are files at most, and the next server removes them.
    assert wait_until(lambda: not any("/" not in left for left in left_behind(name)))
    with EmbeddedServer(repository) as server:
        ask(server)
        assert wait_until(lambda: left_behind(name) == [], 3), left_behind(name)


def test_the_files_of_servers_that_were_killed_whole_are_swept(repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(repository)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name, guard_process = process.stdout.readline().split()
    (triton,) = guard.children(int(guard_process))
    stubs = guard.children(triton)
    for victim in (int(guard_process), triton, *stubs, process.pid):
        os.kill(victim, signal.SIGSTOP)
    for victim in (int(guard_process), triton, *stubs, process.pid):
        os.kill(victim, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: all(guard.ended(victim) for victim in (int(guard_process), triton, *stubs)))
    assert {Path(left).parent for left in left_behind(name)} == {
        Path("/dev/shm"),
        runtime._temporary_folder(),
    }
    with EmbeddedServer(repository) as server:
        other = runtime_name(server)
        assert left_behind(name) == []
        runtime.sweep()
        ask(server)
        assert left_behind(other)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_tercet_serve_ends_cleanly(repository: Path, ending: signal.Signals) -> None:
    command = [
        shutil.which("tercet", path=Path(sys.executable).parent),
        "serve",
        "--repository",
        str(repository),
    ]
    ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    process = subprocess.Popen(
        [*command, *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Children of a shell's background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    address = process.stdout.readline().split()
    assert address[0] == "gRPC"
    process.send_signal(ending)
    assert process.wait(20) == 0
    output, errors = process.stdout.read(), process.stderr.read()
    assert "serving  double" in output
    assert "Stopped." in errors
    assert "Traceback" not in errors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address[1].split(":")[1])), 1)


def test_tercet_serve_ends_cleanly_while_it_loads(repository: Path) -> None:
    command = [
        shutil.which("tercet", path=Path(sys.executable).parent),
        "serve",
        "--repository",
        str(repository),
    ]
    ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    process = subprocess.Popen([*command, *ports, "--logs"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
