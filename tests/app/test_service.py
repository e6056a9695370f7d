"""The service: the captions of the captioner alone, whoever asks beside; a bad request is told what is wrong."""

from __future__ import annotations

import asyncio
import gc
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from bita.app.engine import Engine, Limits
from bita.app.service import Service
from bita.inference.captioner import Captioner
from tests.app.conftest import as_bytes, image

LIMITS = Limits(image_bytes=200_000, image_pixels=1_000_000, batch=8, wait=0.02)


@pytest.fixture
def engine(captioner: Captioner) -> Iterator[Engine]:
    made = Engine(captioner, LIMITS)
    yield made
    made.close()


class Client:
    """One request at a time."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def __call__(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with asynchronous(self.service.app()) as client:
                return await client.request(method, path, **given)

        return asyncio.run(ask())

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self("POST", path, **given)

    def get(self, path: str) -> httpx.Response:
        return self("GET", path)


@pytest.fixture
def client(engine: Engine) -> Client:
    return Client(Service(engine))


def giant_png(side: int) -> bytes:
    """A PNG that says it is huge, and is whole as far as its header goes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


PNG = as_bytes(image(0))
BAD: dict[str, tuple[int, bytes, str, str]] = {
    "nothing": (422, b"", "image/png", "no image"),
    "text": (415, b"aerial photograph", "image/jpeg", "none of TIFF"),
    "page": (415, b"<!doctype html><title>Sign in</title>", "image/png", "Sign in"),
    "zip": (415, b"PK\x03\x04" + bytes(60), "application/octet-stream", "zip archive"),
    "json": (415, b'{"image": "x"}', "application/json", "application/json"),
    "cut off": (422, PNG[: len(PNG) // 2], "image/png", "does not open"),
    "cut off TIFF": (422, as_bytes(image(0), "TIFF")[:2000], "image/tiff", "does not open"),
    "many bytes": (413, bytes(200_001), "image/png", "0 MiB"),
    "many pixels": (413, giant_png(1001), "image/png", "1001 × 1001 pixels"),
    "giant": (413, giant_png(30_000), "image/png", "far more than 1,000,000 pixels"),
    "no form": (422, b"x", "multipart/form-data", "form cannot be read"),
}


def alone(captioner: Captioner, picture: Any) -> dict[str, Any]:
    (record,) = captioner.stream([picture])
    return {**vars(record), "width": picture.width, "height": picture.height}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Sums of a batch may differ from those of one image in their last digits."""
    return {**found, "log_probability": None} == {**wanted, "log_probability": None} and found[
        "log_probability"
    ] == pytest.approx(wanted["log_probability"], abs=1e-3)


def test_bytes_and_a_form_get_the_captioners_caption(client: Client, captioner: Captioner) -> None:
    picture = image(1)
    wanted = alone(captioner, picture)
    for kind in ("image/png", "application/octet-stream", "IMAGE/X; a=b"):
        answer = client.post("/v1/caption", content=as_bytes(picture), headers={"Content-Type": kind})
        assert answer.status_code == 200
        assert same(answer.json(), wanted)
    for name in ("image", "file"):
        answer = client.post("/v1/caption", files={name: ("ü.png", as_bytes(picture))}, data={"note": "x"})
        assert same(answer.json(), wanted)
    assert same(
        client.post("/v1/caption", content=as_bytes(picture, "TIFF")).json(), wanted
    )  # no Content-Type


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(client: Client, what: str) -> None:
    status, content, kind, said = BAD[what]
    answer = client.post("/v1/caption", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    (line,) = answer.json()["detail"].splitlines()
    assert said in line


def test_forms_that_hold_no_image(client: Client) -> None:
    def post(**given: Any) -> tuple[int, str]:
        answer = client.post("/v1/caption", **given)
        return answer.status_code, answer.json()["detail"]

    assert post(files={"image": ("a.png", b"")}) == (422, "there is no image in the request")
    assert post(files={"x": (None, "text")}) == (422, "there is no file in the form; send one, as image")
    two = [("image", ("a.png", PNG)), ("image", ("b.png", PNG))]
    status, said = post(files=two)
    assert status == 422
    assert "send one file" in said
    status, said = post(files={"image": ("my notes.jpg", b"notes")})
    assert status == 415
    assert said.startswith("my notes.jpg: image does not open")
    status, said = post(files={"image": ("a.png", bytes(200_000))})
    assert status == 413


def test_other_methods_and_paths(client: Client) -> None:
    """A page that is mounted at the root, as the application's is, would take whatever no route does."""
    app = client.service.app()
    app.mount("/", PlainTextResponse("the page"))

    async def ask(method: str, path: str) -> tuple[int, str, str]:
        async with asynchronous(app) as page:
            answer = await page.request(method, path)
            return answer.status_code, answer.headers.get("Allow", ""), answer.text

    for path, allowed in (("/v1/caption", "POST"), ("/v1/health", "GET"), ("/docs", "GET")):
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - {allowed}:
            status, allow, said = asyncio.run(ask(method, path))
            assert (status, allow) == (405, allowed), (method, path)
            assert method == "HEAD" or said == f'{{"detail":"{method} {path}: takes {allowed}"}}'
    assert asyncio.run(ask("GET", "/v1/health"))[0] == 200
    assert asyncio.run(ask("GET", "/v1/captions"))[2] == "the page"


def test_health(client: Client, captioner: Captioner) -> None:
    assert client.get("/v1/health").json() == {
        "status": "ok",
        "model": captioner.hash,
        "device": "cpu",
        "waiting": 0,
        "limit": 256,
    }


def test_the_page_of_the_service_names_every_field_and_status_and_needs_no_network(client: Client) -> None:
    page, api = client.get("/docs").text, client.get("/openapi.json").json()
    for path, operations in api["paths"].items():
        assert path in page
        for operation in operations.values():
            assert all(
                f"<code>{status}</code>" in page for status in operation["responses"] if status != "200"
            )
    for schema in ("CaptionedImage", "Health"):
        assert all(
            f"<code>{name}</code>" in page for name in api["components"]["schemas"][schema]["properties"]
        )
    assert "https:" not in page
    assert {str(status) for status, *_ in BAD.values()} <= set(
        api["paths"]["/v1/caption"]["post"]["responses"]
    )


async def post(client: httpx.AsyncClient, content: bytes, kind: str = "image/png") -> httpx.Response:
    return await client.post("/v1/caption", content=content, headers={"Content-Type": kind})


def asynchronous(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=None)


def test_two_hundred_at_once(engine: Engine, captioner: Captioner) -> None:
    """5% of them bad, each in its way; three rounds, after the first of which memory stays where it is."""
    pictures = [image(seed) for seed in range(20)]
    wanted = [alone(captioner, picture) for picture in pictures]
    bad = [BAD[what] for what in ("text", "cut off", "many pixels", "giant", "nothing")]

    async def rounds() -> list[int]:
        peaks = []
        async with asynchronous(Service(engine).app()) as client:
            for _ in range(3):
                requests = [
                    post(client, bad[number % 5][1])
                    if number % 20 == 7
                    else post(client, as_bytes(pictures[number % 20]))
                    for number in range(200)
                ]
                for number, answer in enumerate(await asyncio.gather(*requests)):
                    if number % 20 == 7:
                        assert answer.status_code == bad[number % 5][0]
                    else:
                        assert answer.status_code == 200, answer.text
                        assert same(answer.json(), wanted[number % 20])
                gc.collect()
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return peaks

    peaks = asyncio.run(rounds())
    assert peaks[2] - peaks[0] < 30_000  # KiB
    assert engine.waiting == 0


def test_more_than_may_wait_are_told_when_to_come_again(captioner: Captioner) -> None:
    engine = Engine(captioner, Limits(waiting=5))

    async def flood() -> list[httpx.Response]:
        async with asynchronous(Service(engine).app()) as client:
            with engine.lock:  # the model is busy
                requests = [asyncio.create_task(post(client, PNG)) for _ in range(12)]
                done, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                while len(done) < 7:
                    done, _ = await asyncio.wait(requests, timeout=0.01)
            answers = await asyncio.gather(*requests)
            assert (await post(client, PNG)).status_code == 200  # there is room again
            return answers

    answers = asyncio.run(flood())
    engine.close()
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 7
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) >= 1
            assert "come again" in answer.json()["detail"]


def test_a_body_that_does_not_come_is_given_up(captioner: Captioner) -> None:
    engine = Engine(captioner, Limits(body_seconds=0.05))

    async def never() -> Any:
        yield PNG[:10]
        await asyncio.Event().wait()

    async def ask() -> int:
        async with asynchronous(Service(engine).app()) as client:
            return (await client.post("/v1/caption", content=never())).status_code

    assert asyncio.run(ask()) == 408
    engine.close()


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_connection_that_is_lost_is_no_error_of_the_service(engine: Engine, kind: str) -> None:
    """As a server tells of one, which a client of httpx cannot."""
    service, sent = Service(engine), []
    came = iter(
        [{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/caption", "query_string": b""}
    asyncio.run(service.app()(scope | {"headers": [(b"content-type", kind.encode())]}, receive, send))
    assert sent[0]["status"] == 400
    assert b"the connection was closed before the body had come" in sent[1]["body"]
    assert service.requests == 0


def test_decoded_pixels_are_bounded(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of which four may be decoded at a time are never more in memory, though forty are asked for."""
    engine = Engine(captioner, Limits(image_pixels=40 * 40, wait=0.0))
    service = Service(engine)
    least: list[int] = []
    decode = engine.open

    def opened(content: bytes, where: str) -> Any:
        least.append(service.pixels.free)
        return decode(content, where)

    monkeypatch.setattr(engine, "open", opened)

    async def ask() -> list[int]:
        async with asynchronous(service.app()) as client:
            return [
                answer.status_code for answer in await asyncio.gather(*(post(client, PNG) for _ in range(40)))
            ]

    assert asyncio.run(ask()) == [200] * 40
    assert min(least) >= 0
    assert service.pixels.free == 4 * 40 * 40
    engine.close()


def test_a_stopped_engine_says_so(captioner: Captioner) -> None:
    engine = Engine(captioner)
    service = Service(engine)
    engine.close()

    async def ask() -> int:
        async with asynchronous(service.app()) as client:
            return (await post(client, PNG)).status_code

    assert asyncio.run(ask()) == 503


def test_upright_images_are_not_turned_again(client: Client, captioner: Captioner, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "turned.png"
    image(3).crop((0, 0, 40, 20)).save(path, exif=exif)
    (wanted,) = captioner.stream([path])
    answer = client.post(
        "/v1/caption", content=path.read_bytes(), headers={"Content-Type": "image/png"}
    ).json()
    assert answer["caption"] == wanted.caption
    assert answer["log_probability"] == pytest.approx(wanted.log_probability, abs=1e-4)
    assert (answer["width"], answer["height"]) == (20, 40)
