"""Fetching weights from a server on this machine: cached by content, resumed, checked, never led elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bita.errors import UserError
from bita.weights import downloads
from bita.weights.downloads import local_file

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`, and breaks the connection after so many bytes of an answer where `cuts` says so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/weights.pth": CONTENT}
        self.cuts: list[int] = []
        self.redirects: dict[str, str] = {}
        self.etag = '"one"'
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if wanted is not None and self.headers.get("If-Range") == self.server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    server = Server()
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_paths_stay_as_they_are() -> None:
    assert local_file("some/weights.pth") == Path("some/weights.pth")


def test_a_file_is_fetched_once_and_lies_under_the_hash_of_its_content(
    server: Server, tmp_path: Path
) -> None:
    path = local_file(f"{server.address}/weights.pth")
    assert path == tmp_path / f"home/hub/bita/{DIGEST}/weights.pth"
    assert path.read_bytes() == CONTENT
    assert local_file(f"{server.address}/weights.pth") == path
    assert len(server.asked) == 1
    assert [
        file.name for file in (tmp_path / "home/hub/bita/partial").iterdir() if file.suffix != ".lock"
    ] == []


def test_known_content_is_taken_from_the_cache_whatever_its_address(server: Server) -> None:
    path = local_file(f"{server.address}/weights.pth")
    assert local_file(f"http://127.0.0.1:1/elsewhere.pth#sha256={DIGEST.upper()}") == path
    path.write_bytes(b"altered since")
    with pytest.raises(UserError, match=r"elsewhere\.pth: cannot be fetched"):
        local_file(f"http://127.0.0.1:1/elsewhere.pth#sha256={DIGEST}")
    assert local_file(f"{server.address}/weights.pth#sha256={DIGEST}").read_bytes() == CONTENT


def test_a_fetch_that_is_cut_off_goes_on_where_it_stopped(server: Server) -> None:
    server.cuts = [300_000, 200_000]
    assert local_file(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_what_came_is_kept_for_the_next_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.cuts = [300_000]
    with pytest.raises(
        UserError, match=r"cut off 1 times \(300000 of 1024000 bytes came\); what came is kept"
    ):
        local_file(f"{server.address}/weights.pth")
    assert local_file(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.cuts = [300_000]
    with pytest.raises(UserError, match="cut off"):
        local_file(f"{server.address}/weights.pth")
    server.etag, server.files["/weights.pth"] = '"two"', b"new" * 1000
    assert local_file(f"{server.address}/weights.pth").read_bytes() == b"new" * 1000


def test_other_content_than_asked_for_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"refused, since its sha256 is {DIGEST} and the address asks for 0000"
    ):
        local_file(f"{server.address}/weights.pth#sha256={'0' * 64}")
    assert not list((tmp_path / "home").rglob("weights.pth"))
    with pytest.raises(UserError, match="wanted sha256= and 64 hexadecimal digits"):
        local_file(f"{server.address}/weights.pth#md5=1")


@pytest.mark.parametrize("target", ["https://127.0.0.1/x.pth", "file:///etc/passwd", "ftp://127.0.0.1/x.pth"])
def test_a_redirect_to_another_scheme_is_refused(server: Server, target: str) -> None:
    server.redirects["/moved.pth"] = target
    with pytest.raises(UserError, match=r"leads to another scheme|is not allowed") as caught:
        local_file(f"{server.address}/moved.pth")
    assert target in str(caught.value)


def test_a_redirect_of_the_same_scheme_is_followed(server: Server) -> None:
    server.redirects["/moved.pth"] = "/weights.pth"
    assert local_file(f"{server.address}/moved.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["..%2f..%2fescape.pth", "a/%2e%2e", "..%5c..%5cescape.pth", ""])
def test_a_name_cannot_leave_the_cache(server: Server, tmp_path: Path, name: str) -> None:
    server.files[f"/{name}"] = CONTENT
    path = local_file(f"{server.address}/{name}")
    assert path.resolve().parent == tmp_path / f"home/hub/bita/{DIGEST}"


def test_what_cannot_be_had_is_one_line(server: Server) -> None:
    for address, message in (
        (f"{server.address}/absent.pth", r"absent\.pth: cannot be fetched \(HTTP Error 404"),
        ("http://127.0.0.1:1/x.pth", r"x\.pth: cannot be fetched"),
        ("ftp://example.org/weights.pth", r"only paths and http\(s\) addresses"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            local_file(address)
        assert "\n" not in str(caught.value)
