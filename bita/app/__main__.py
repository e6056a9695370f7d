"""A page in the browser to caption images and scenes with, and the service beside it.

bita-app                                            # with the model that the package brings
bita-app --checkpoint output/quickstart/caption
curl -F image=@image.jpg http://127.0.0.1:7860/v1/caption

A checkout has it as `python -m bita.app`. It is reached from this machine alone unless --host says otherwise, and needs
no network."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bita.checkpoint import start_with
from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.packages import BOX

if TYPE_CHECKING:
    from bita.app.engine import Engine


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-app`; its exit code."""
    args = _line().parse_args(arguments)
    start_with(args.checkpoint)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError('the page needs gradio: pip install "bita[app]"') from None

    from bita.app.engine import MEBIBYTE, Engine, Limits
    from bita.inference.captioner import Captioner

    limits = Limits(
        image_bytes=args.max_mib * MEBIBYTE,
        image_pixels=args.max_megapixels * 1_000_000,
        scene_bytes=args.max_scene_mib * MEBIBYTE,
        waiting=args.queue,
        batch=args.batch_size,
        wait=args.wait_ms / 1000,
    )
    engine = Engine(Captioner.load(args.checkpoint, args.device, args.quantize), limits)
    with tempfile.TemporaryDirectory(prefix="bita-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        try:
            serve(engine, args.host, args.port)
        finally:
            tempfile.tempdir = None
    return 0


def _line() -> argparse.ArgumentParser:
    parser = command_line(__doc__)
    parser.add_argument(
        "--checkpoint",
        default=BOX,
        help="a run's folder, a checkpoint in it, or an exported model (default: what the package brings)",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "int4"))
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone)"
    )
    parser.add_argument("--port", type=at_least(0), default=7860, help="default: 7860; 0 takes a free one")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=16, help="images that the model takes at a time"
    )
    parser.add_argument("--wait-ms", type=at_least(0), default=5, help="that an image waits for others")
    parser.add_argument("--queue", type=at_least(1), default=256, help="requests that may wait; more get 503")
    parser.add_argument("--max-mib", type=at_least(1), default=32, help="of an image file")
    parser.add_argument("--max-megapixels", type=at_least(1), default=50, help="of an image")
    parser.add_argument(
        "--max-scene-mib", type=at_least(1), default=2048, help="of a scene, which is read by windows"
    )
    return parser


def serve(engine: Engine, host: str, port: int) -> None:
    """Answer until Ctrl-C or SIGTERM; then finish what is under way.

    Raises:
        UserError: the address cannot be had.
    """
    import uvicorn

    from bita.app.page import mount
    from bita.app.service import Service

    app = mount(Service(engine).app(), engine)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10, timeout_keep_alive=75)
    with listening(host, port) as place, exits_on_sigterm():
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{place.getsockname()[1]}  (the service: /docs)  Ctrl-C ends it", flush=True)
        uvicorn.Server(config).run(sockets=[place])


@contextlib.contextmanager
def exits_on_sigterm() -> Iterator[None]:
    """Let SIGTERM, which uvicorn raises again at its end, unwind what is open; then what stood there stands again."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}; choose another --port"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
