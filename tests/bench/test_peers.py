"""The comparison with peers, as far as it goes without them: rounds, ratios, the page, environments."""

import dataclasses
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

import numpy as np
import open_clip
import pytest
import torch
import transformers

from benchmarks.peers import environments, measuring, report, rounds, systems
from benchmarks.peers.http import HttpTarget, Post
from benchmarks.peers.researcher import ResearcherTarget
from benchmarks.peers.rounds import OURS, Round
from benchmarks.peers.weights import as_hugging_face, clip_config
from benchmarks.rows import read_rows, write_rows
from tercet_export.networks.clip import Architecture, build

FACTS = {
    "machine": {"processor": "a processor", "threads": 2, "instructions": ["avx2"], "memory": 2**33},
    "not_run": {"bentoml": "it did not start"},
    OURS: {"ViT-B/32": "as it comes"},
}


def row(system: str, number: int, throughput: float, **changes) -> Round:
    plain = Round(
        network="ViT-B/32",
        target="embed_image",
        clients=16,
        system=system,
        number=number,
        throughput=throughput,
        p50_ms=100.0,
        p99_ms=200.0,
        answers=50,
        failures=0,
        cores=1.5,
        memory_mb=900,
        agreement=0.9999,
        load_average=3.0,
        others=0.25,
    )
    return dataclasses.replace(plain, **changes)


ROWS = [
    *(row(OURS, number, rate) for number, rate in enumerate((100.0, 50.0, 120.0))),
    *(row("infinity", number, rate) for number, rate in enumerate((20.0, 10.0, 60.0))),
    *(row("litserve", number, rate, failures=1) for number, rate in enumerate((50.0, 40.0, 30.0))),
]


def test_ratio_is_of_the_same_round_and_the_median_of_all():
    ours, first, second = rounds.compare(ROWS)
    assert (ours.system, first.system, second.system) == (OURS, "litserve", "infinity")
    assert (ours.ratio, ours.least, ours.largest) == (1.0, 1.0, 1.0)
    assert (second.ratio, second.least, second.largest) == (5.0, 2.0, 5.0)
    assert (first.ratio, first.least, first.largest) == (2.0, 1.25, 4.0)
    assert (second.throughput, second.rounds, first.failures) == (20.0, 3, 3)


def test_rounds_that_tercet_did_not_take_part_in_do_not_count():
    _, other = rounds.compare([row(OURS, 0, 10.0), row("x", 0, 5.0), row("x", 1, 1.0)])
    assert (other.rounds, other.throughput, other.ratio) == (1, 5.0, 2.0)
    assert rounds.compare([row("x", 0, 5.0)]) == []
    assert [one.system for one in rounds.compare([row(OURS, 0, 10.0), row("x", 0, 0.0)])] == [OURS]


def test_csv_is_read_as_it_was_written_and_new_rows_replace_a_target_whole(tmp_path):
    file = tmp_path / "peers.csv"
    assert read_rows(Round, file) == []
    write_rows(file, ROWS)
    assert read_rows(Round, file) == ROWS
    text = row(OURS, 0, 7.0, target="embed_text")
    merged = rounds.merge([*ROWS, text], [row(OURS, 0, 9.0)])
    assert sorted(one.throughput for one in merged) == [7.0, 9.0]


def test_page_and_plot_come_from_the_kept_rounds(tmp_path):
    write_rows(tmp_path / "peers.csv", ROWS)
    text, picture = report.write_report(tmp_path, FACTS)
    page = text.read_text()
    assert "| infinity | 20 | **5.00** (2.00 to 5.00) |" in page
    assert "| **tercet** | 100 | 1 |" in page
    assert "bentoml | **not run**: it did not start" in page
    assert systems.PEERS["infinity"].settings in page
    assert "| tercet, ViT-B/32 | as it comes |" in page
    assert picture.stat().st_size > 5_000
    assert json.loads((tmp_path / "peers.json").read_text()) == FACTS


def test_every_peer_has_an_environment_with_every_version_pinned():
    assert set(environments.NAMES) == {"torch", *systems.PEERS}
    for name in environments.NAMES:
        lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().split()
        assert lines
        assert all(re.fullmatch(r"[\w.\-]+==[\w.+!]+", line) for line in lines)
    pinned = {line for name in environments.NAMES for line in versions(name)}
    assert {"infinity_emb==0.0.77", "litserve==0.2.19", "bentoml==1.4.40"} <= pinned


def versions(name: str) -> list[str]:
    return (environments.REQUIREMENTS / f"{name}.txt").read_text().split()


@pytest.mark.parametrize("name", systems.PEERS)
def test_requests_carry_the_file_and_the_text_whole(name):
    file, text = bytes(range(256)), 'a "red" dress — longer'
    image = systems.PEERS[name].image(file)
    if image.content_type == "application/json":
        content = json.dumps(json.loads(image.body))
        assert systems.base64_of(file) in content
    else:
        assert file in image.body
    assert text in json.dumps(json.loads(systems.PEERS[name].text(text).body), ensure_ascii=False).replace(
        '\\"', '"'
    )


def test_load_over_http_counts_answers_and_failures():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if body == b"good" else 503)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        posts = [Post("/", b"good"), Post("/", b"bad")]
        target = HttpTarget("x", server.server_port, posts, 2, 5.0)
        measured = measuring.measure(target, measuring.Load(2, 0.1, 0.5), None, 5.0)
        target.close()
    finally:
        server.shutdown()
        server.server_close()
    assert measured.answers > 0
    assert measured.failures > 0
    assert measured.p50_ms > 0
    assert 0 <= measured.others <= os.cpu_count()
    assert measured.throughput == pytest.approx(measured.answers / 0.5, rel=0.5)


def test_windows_hold_whole_batches():
    period, batch = 0.25, 4

    class Batches:
        """Answers four requests at once, every quarter of a second."""

        name = "batches"

        def __init__(self):
            self.waiting = SimpleQueue()
            threading.Thread(target=self.run, daemon=True).start()

        def send(self, number, done):
            self.waiting.put(done)

        def run(self):
            while True:
                answered = [self.waiting.get() for _ in range(batch)]
                time.sleep(period)
                for done in answered:
                    done(None)

    measured = measuring.measure(Batches(), measuring.Load(batch, 0.1, 1.9 * period), None, 5.0)
    # A window of just so many seconds would have one batch of them or two: 8 or 17 a second.
    assert measured.throughput == pytest.approx(batch / period, rel=0.25)


def test_both_layouts_of_clip_give_the_same_embeddings(monkeypatch):
    sizes = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    ours = build(Architecture("tiny", sizes, {})).eval()
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: sizes)
    theirs = transformers.CLIPModel(clip_config("tiny")).eval()
    theirs.load_state_dict(as_hugging_face(dict(ours.state_dict())), strict=False)
    pixels, ids = torch.randn(2, 3, 32, 32), open_clip.tokenize(["a dress", "a longer text of a dog"])
    with torch.no_grad():
        answers = theirs(pixel_values=pixels, input_ids=ids)
        pairs = (
            (ours.encode_image(pixels), answers.image_embeds),
            (ours.encode_text(ids), answers.text_embeds),
        )
    for mine, other in pairs:
        unit = torch.nn.functional.normalize(mine, dim=-1)
        np.testing.assert_allclose(unit.numpy(), other.numpy(), atol=1e-5)


@pytest.mark.parametrize(("clients", "batch"), [(1, 1), (3, 1), (4, 4), (5, 4)])
def test_script_answers_everybody_in_batches(clients, batch):
    class Researcher:
        def __init__(self):
            self.batches = []

        def queries(self, files, texts):
            assert len(files) == len(texts)
            self.batches.append(len(files))

    researcher = Researcher()
    target = ResearcherTarget("script", researcher, batch)
    measured = measuring.measure(target, measuring.Load(clients, 0.2, 0.5), None, 5.0)
    target.close()
    assert measured.answers > 0
    assert measured.failures == 0
    assert max(researcher.batches) == batch
