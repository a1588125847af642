"""Checkpoints from an https address, against a real server with a certificate of its own."""

import functools
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trustme

from tercet.errors import CheckpointError
from tercet_export import checkpoints
from tercet_export.downloads import download


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `/cut/...` breaks off half way. Remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")
        return None

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a folder with `weights/net.pth`."""
    served = tmp_path / "served"
    (served / "weights").mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, served / "weights" / "net.pth")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    Files.asked = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Files, directory=str(served))
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_is_downloaded_once(home: str) -> None:
    first = checkpoints.resolve(f"{home}/weights/net.pth")
    assert checkpoints.read(first).tensors()["a"].tolist() == [1, 1]
    assert first.name == "net.pth"
    assert checkpoints.resolve(f"{home}/weights/net.pth") == first
    assert Files.asked == ["/weights/net.pth"]


@pytest.mark.parametrize("path", ["/weights/absent.pth", "/cut/net.pth"])
def test_what_does_not_arrive_is_named_and_leaves_nothing(home: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{path} cannot be downloaded .*give the file's path"):
        download(home + path)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


@pytest.mark.parametrize("extra", ["?token=secret", "#secret"])
def test_secrets_in_an_address_are_refused_and_not_repeated(extra: str) -> None:
    with pytest.raises(CheckpointError, match="would tell to everybody") as caught:
        download(f"https://localhost/net.pth{extra}")
    assert "secret" not in str(caught.value)


def test_a_user_in_an_address_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"https://localhost/net\.pth was given with a user"):
        download("https://me:secret@localhost/net.pth")


@pytest.mark.parametrize("url", ["https://", "https://host", "https://host/", "https://host/../net.pth"])
def test_an_address_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match="write https://host/path/file"):
        download(url)
