"""The service as docs/page.md starts it: a process of its own, asked by two hundred at a time over real connections."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bita.inference.captioner import Captioner
from tests.app.conftest import as_bytes, image
from tests.app.test_service import BAD, alone, giant_png, same

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/page.md").read_text()
MEBIBYTE = 2**20
WRONG = {
    "text": (415, b"aerial photograph"),
    "a page of a server": (415, BAD["page"][1]),
    "cut off": (422, BAD["cut off"][1]),
    "cut off TIFF": (422, BAD["cut off TIFF"][1]),
    "nothing": (422, b""),
    "30,000 × 30,000 pixels": (413, giant_png(30_000)),
    "7,200 × 7,200 pixels": (413, giant_png(7200)),
    "33 MiB": (413, bytes(33 * MEBIBYTE)),
}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Where `python -m bita.app --checkpoint RUN` answers, and its process id; it ends by Ctrl-C."""
    (command,) = re.findall(r"^    python (-m bita\.app) --checkpoint", PAGE, re.M)
    words = [sys.executable, *command.split(), "--checkpoint", str(run), "--port", "0"]
    folder = tmp_path_factory.mktemp("server")
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert process.stdout is not None
    found = re.match(r"http://[\d.]+:\d+", process.stdout.readline())
    assert found, (folder / "said").read_text()
    yield found[0], process.pid
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in (folder / "said").read_text()


def resident(pid: int) -> int:
    """MiB that a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1024


def test_two_hundred_at_once_of_which_ten_are_bad(server: tuple[str, int], captioner: Captioner) -> None:
    address, pid = server
    pictures = [image(seed, 120) for seed in range(20)]
    wanted = [alone(captioner, picture) for picture in pictures]
    files = [as_bytes(picture, kind) for picture, kind in zip(pictures, ["PNG", "TIFF"] * 10, strict=True)]
    bad = list(WRONG.values())

    async def rounds(count: int) -> list[int]:
        memory = []
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
            for number in range(count):
                asked = [files[n % 20] if n % 20 else bad[n // 20 % len(bad)][1] for n in range(200)]
                answers = await asyncio.gather(*(client.post("/v1/caption", content=body) for body in asked))
                for n, answer in enumerate(answers):
                    if n % 20:
                        assert answer.status_code == 200, answer.text
                        assert same(answer.json(), wanted[n % 20])
                    else:
                        assert answer.status_code == bad[n // 20 % len(bad)][0], (number, n, answer.text)
                        assert len(answer.json()["detail"].splitlines()) == 1
                memory.append(resident(pid))
        return memory

    memory = asyncio.run(rounds(6))
    print("MiB resident after each round:", *memory)
    assert max(memory[2:]) - memory[1] <= 16, memory


def test_the_pages_commands(server: tuple[str, int], captioner: Captioner, tmp_path: Path) -> None:
    """curl, as the page has it, and a connection that was idle for longer than uvicorn keeps one by default."""
    address, _ = server
    image(0).save(tmp_path / "image.jpg")
    image(1).save(tmp_path / "image.tif")
    commands = re.findall(r"^    (curl .*)$", PAGE, re.M)
    assert len(commands) == 3
    said = [
        subprocess.run(
            ["bash", "-c", command.replace("http://127.0.0.1:7860", address)],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        ).stdout
        for command in commands
    ]
    for name, answer in zip(("image.jpg", "image.tif"), said, strict=False):
        assert httpx.Response(200, content=answer).json()["caption"] == str(
            captioner.caption(tmp_path / name)
        )
    assert httpx.Response(200, content=said[2]).json()["model"] == captioner.hash

    async def twice() -> int:
        host, port = address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for pause in (6.0, 0.0):
            writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(pause)
        writer.close()
        return 2

    assert asyncio.run(twice()) == 2
