"""A short soak; `tests/serving/soak.py` runs long ones by hand."""

from pathlib import Path

import pytest

from tercet.server import EmbeddedServer
from tests.serving.graphs import CPU, NETWORK, network, write_model
from tests.serving.soak import Report, rows, soak

MEBIBYTE = 2**20


@pytest.mark.slow
def test_killed_clients_harm_nobody(tmp_path: Path) -> None:
    write_model(tmp_path, "network", network(), NETWORK + CPU + "dynamic_batching {}")
    with EmbeddedServer(tmp_path) as server:
        report = soak(server, "network", rows(), seconds=40)
        server.check()
    assert report.wrong == []
    assert report.answered > 1000
    assert report.killed >= 16
    assert Report.growth(report.memory) < 16 * MEBIBYTE, report
    assert Report.growth(report.shared_memory) <= 0, report
