"""The service: `POST /v1/caption`, an image in and JSON out, `GET /v1/health`, and a page that describes both.

Requests that come at the same time are captioned in one batch. Whatever is wrong with a request is a status of 4xx and
a line that says what; more requests than may wait get 503 and `Retry-After`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bita.app.batching import Closed, QueueFull
from bita.app.engine import MEBIBYTE, Engine
from bita.errors import UserError
from bita.inference.captions import Caption
from bita.processors.rgb import NoImageError
from bita.processors.samples import TooLargeError

STATUS = ((TooLargeError, 413), (NoImageError, 415), (UserError, 422))
"""What is wrong with an image → status, the first that fits."""
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The connection was closed before the body had come."},
    408: {"description": "The body did not come in time."},
    413: {"description": "The file has too many bytes, or the image too many pixels. Cut it into tiles."},
    415: {"description": "It is not an image, or an image of a kind that is not read."},
    422: {"description": "There is no image in the request, or it is broken or cut off."},
    503: {"description": "Too many requests wait. Come again after the seconds that `Retry-After` names."},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file (JPEG, PNG, TIFF, WebP, JPEG 2000, BMP, GIF, AVIF), as the body or "
        "as a form's file.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
        },
    }
}


class CaptionedImage(BaseModel):
    """An image's caption and what is known of it."""

    caption: Annotated[str, Field(description="The best candidate.")]
    candidates: Annotated[list[str], Field(description="Best first.")]
    log_probability: Annotated[float, Field(description="Sum over the caption's tokens, natural logarithm.")]
    tokens: Annotated[int, Field(description="How many these are.")]
    score: Annotated[
        float | None, Field(description="Image-text cosine of stage 1, -1 to 1, if there is one.")
    ]
    confidence: Annotated[float | None, Field(description="Quality to expect, 0 to 1, if calibrated.")]
    model: Annotated[str, Field(description="Hash of the model's weights.")]
    width: Annotated[int, Field(description="Of the image, in pixels.")]
    height: Annotated[int, Field(description="Of the image, in pixels.")]


class Health(BaseModel):
    """Whether captions can be had."""

    status: Annotated[str, Field(description="`ok`.")]
    model: Annotated[str, Field(description="Hash of the model's weights.")]
    device: Annotated[str, Field(description="What the model computes on.")]
    waiting: Annotated[int, Field(description="Requests under way.")]
    limit: Annotated[int, Field(description="Requests that may be under way; more get 503.")]


class Pixels:
    """Pixels that may lie decoded in memory at a time; who wants more than are free waits for its turn.

    Args:
        total: of all; one image has fewer.
    """

    def __init__(self, total: int) -> None:
        self.free = total
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Hold `count` pixels."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.free >= count)
            self.free -= count
        try:
            yield
        finally:
            async with self._changed:
                self.free += count
                self._changed.notify_all()


class OtherMethods:
    """Answers the methods that a route has not; left alone, they would reach the page, which is mounted at the root.

    Args:
        route: that has some methods.
    """

    def __init__(self, route: Route) -> None:
        self.allowed = ", ".join(sorted(route.methods or ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise 405."""
        said = f"{scope['method']} {scope['path']}: takes {self.allowed}"
        raise HTTPException(405, said, headers={"Allow": self.allowed})


class Service:
    """The routes, and how many requests are on them.

    Args:
        engine: whose model answers.

    Attributes:
        requests: under way.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests = 0
        self.pixels = Pixels(4 * engine.limits.image_pixels)
        self.decoding = anyio.CapacityLimiter(os.cpu_count() or 1)

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI(
            title="BITA",
            summary="Captions for aerial and satellite images.",
            version="1",
            docs_url=None,
            redoc_url=None,
            lifespan=self._life,
        )
        app.add_api_route(
            "/v1/caption",
            self.caption,
            methods=["POST"],
            response_model=CaptionedImage,
            responses=RESPONSES,
            openapi_extra=BODY,
            summary="Caption an image",
        )
        app.add_api_route("/v1/health", self.health, response_model=Health, summary="Ask whether it works")
        page = Environment(loader=PackageLoader("bita.app"), autoescape=True).get_template("service.html.j2")
        app.add_api_route(
            "/docs",
            lambda: HTMLResponse(page.render(api=app.openapi(), limits=self.engine.limits)),
            include_in_schema=False,
        )
        for route in [route for route in app.routes if isinstance(route, Route)]:
            app.router.routes.append(Route(route.path, OtherMethods(route), include_in_schema=False))
        return app

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(self.engine.close)

    async def caption(self, request: Request) -> CaptionedImage:
        """Write a caption. Images that come at the same time are captioned together."""
        if self.requests >= self.engine.limits.waiting:
            raise self._busy()
        self.requests += 1
        try:
            content, where = await self._image(request)
            return await self._captioned(content, where)
        finally:
            self.requests -= 1

    async def health(self) -> Health:
        """Return what model answers, and how busy it is."""
        return Health(
            status="ok",
            model=self.engine.captioner.hash,
            device=str(self.engine.captioner.model.device),
            waiting=self.requests,
            limit=self.engine.limits.waiting,
        )

    async def _captioned(self, content: bytes, where: str) -> CaptionedImage:
        try:
            pixels = self.engine.check(content, where)
            async with self.pixels.taken(pixels):
                image = await anyio.to_thread.run_sync(
                    self.engine.open, content, where, limiter=self.decoding
                )
                record: Caption = await asyncio.wrap_future(self.engine.caption(image))
        except UserError as error:
            status = next(status for kind, status in STATUS if isinstance(error, kind))
            raise HTTPException(status, str(error)) from None
        except (QueueFull, Closed):
            raise self._busy() from None
        return CaptionedImage(**vars(record), width=image.width, height=image.height)

    def _busy(self) -> HTTPException:
        seconds = str(self.engine.seconds_until_free)
        return HTTPException(
            503, f"too many requests wait; come again in {seconds} s", headers={"Retry-After": seconds}
        )

    async def _image(self, request: Request) -> tuple[bytes, str]:
        """Return the bytes of a request's image, and how messages call it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            async with asyncio.timeout(self.engine.limits.body_seconds):
                if kind == "multipart/form-data":
                    content, where = await self._form_file(request)
                elif kind in ("", "application/octet-stream", "binary/octet-stream") or kind.startswith(
                    "image/"
                ):
                    content, where = b"".join([part async for part in self._body(request)]), "image"
                else:
                    raise HTTPException(415, f"Content-Type {kind}: send image/*, or multipart/form-data")
        except TimeoutError:
            raise HTTPException(408, "the body of the request did not come in time") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection was closed before the body had come") from None
        if not content:
            raise HTTPException(422, "there is no image in the request")
        return content, where

    async def _body(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Read a body, and no more of it than may be."""
        most = self.engine.limits.image_bytes
        declared, total = request.headers.get("content-length", ""), 0
        refused = HTTPException(
            413, f"the request has more than {most / MEBIBYTE:,.0f} MiB: cut the image into tiles"
        )
        if declared.isdecimal() and int(declared) > most:
            raise refused
        async for part in request.stream():
            total += len(part)
            if total > most:
                raise refused
            yield part

    async def _form_file(self, request: Request) -> tuple[bytes, str]:
        """Return the bytes of a form's file, and its name."""
        try:
            form = await MultiPartParser(
                request.headers, self._body(request), max_files=1, max_fields=8
            ).parse()
        except (MultiPartException, KeyError) as error:
            raise HTTPException(422, f"the form cannot be read ({error}); send one file, as image") from None
        try:
            for value in form.values():
                if isinstance(value, UploadFile):
                    return await value.read(), value.filename or "image"
        finally:
            await form.close()
        raise HTTPException(422, "there is no file in the form; send one, as image")
