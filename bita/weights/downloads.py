"""Weights from http(s) addresses: fetched once into a cache by content, resumed where a fetch was cut off.

CACHE/SHA256/NAME              the files, by the hash of their content
CACHE/addresses/HASH.json      which content an address gave: {"url", "sha256"}
CACHE/partial/HASH             what is there of a file that is not whole yet, beside HASH.json: {"validator"}

CACHE is `bita` in torch's hub folder (TORCH_HOME moves it). An address may end in `#sha256=HEX`: other content is then
refused, and the file is taken from the cache whatever address it came from. Nothing is ever unpacked, a file's name
comes from the address alone, and no redirect leads to another scheme.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urldefrag, urlsplit

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bita.errors import UserError
from bita.files import exclusive, sha256, sync, write_json
from bita.packages import unpacked

ATTEMPTS = 6
"""A fetch that is cut off goes on so many times, after 1, 2, 4, … seconds."""
PAUSE = 1.0
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as cut off."""
CHUNK = 1 << 20


class CutOff(Exception):
    """The connection ended before the file did."""


def local_file(path_or_url: str) -> Path:
    """Return a path as it is; what an http(s) address names, fetched into the cache.

    Every process of a machine may call this: one fetches, the others wait for it.

    Raises:
        UserError: the address is of another kind, cannot be reached, or gives other content than it should.
    """
    if "://" not in path_or_url:
        return Path(unpacked("model.vit_weights", path_or_url))
    url, expected = split_address(path_or_url)
    cache = Path(torch.hub.get_dir()) / "bita"
    key = hashlib.sha256(url.encode()).hexdigest()[:32]
    partial = cache / "partial" / key
    cached = _cached(cache, key, expected)  # without the lock, which another user of the cache may own
    if cached is not None:
        return cached
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(partial.with_name(f"{key}.lock")):
            return _cached(cache, key, expected) or _fetch(url, expected, cache, key)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"weights {url}: cannot be fetched ({error}); download it and name the file"
        ) from error


def split_address(address: str) -> tuple[str, str | None]:
    """Return an address without its fragment, and the sha256 that the fragment asks for.

    Raises:
        UserError: neither http nor https, or the fragment is something else.
    """
    url, fragment = urldefrag(address)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"weights {address}: only paths and http(s) addresses are read")
    if not fragment:
        return url, None
    wanted = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if wanted is None:
        raise UserError(f"weights {address}: after # wanted sha256= and 64 hexadecimal digits")
    return url, wanted[1].lower()


def _cached(cache: Path, key: str, expected: str | None) -> Path | None:
    """Return the file of that content, or the one that this address gave before, where it is there and whole."""
    try:
        digest = expected or str(json.loads((cache / f"addresses/{key}.json").read_text())["sha256"])
        (path,) = (cache / digest).iterdir()
    except (OSError, ValueError, KeyError):
        return None
    if expected is not None and sha256(path) != expected:
        path.unlink()
        return None
    return path


def _fetch(url: str, expected: str | None, cache: Path, key: str) -> Path:
    partial = cache / "partial" / key
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(url, partial)
            break
        except CutOff as error:
            if attempt == ATTEMPTS:
                raise UserError(
                    f"weights {url}: cut off {ATTEMPTS} times ({error}); what came is kept, so start again to go on"
                ) from error
            time.sleep(PAUSE * 2 ** (attempt - 1))
    digest = sha256(partial)
    if expected is not None and digest != expected:
        partial.unlink()
        raise UserError(
            f"weights {url}: refused, since its sha256 is {digest} and the address asks for {expected}"
        )
    sync(partial)
    target = cache / digest / _name(url)
    target.parent.mkdir(exist_ok=True)
    for other in target.parent.iterdir():
        other.unlink()
    partial.replace(target)
    partial.with_name(f"{key}.json").unlink(missing_ok=True)
    (cache / "addresses").mkdir(exist_ok=True)
    write_json(cache / f"addresses/{key}.json", {"url": url, "sha256": digest})
    return target


def _name(url: str) -> str:
    """Return the last piece of an address, as a plain file name."""
    piece = unquote(urlsplit(url).path).replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", piece).lstrip(".") or "weights"


class _SameScheme(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise UserError(
                f"weights {req.full_url}: refused, since it leads to another scheme, {newurl}; if right, name that"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, partial: Path) -> None:
    """Get the rest of a file; what is there already is asked for again only where the server's file has changed.

    Raises:
        CutOff: the connection broke; what came is kept.
        OSError: it cannot be reached at all, or the server answers with an error.
    """
    note = partial.with_name(f"{partial.name}.json")
    have = partial.stat().st_size if partial.is_file() and note.is_file() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", str(json.loads(note.read_text())["validator"]))
    try:
        answer = urllib.request.build_opener(_SameScheme).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        partial.unlink()
        raise CutOff("what was there did not fit") from error
    with answer:
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            write_json(note, {"validator": validator})
        else:
            note.unlink(missing_ok=True)
        with partial.open("ab" if goes_on else "wb") as file:
            have = _copy(answer, file, have, total, _name(url))
    if total is not None and have != total:
        raise CutOff(f"{have} of {total} bytes came")


def _copy(answer: Any, file: IO[bytes], have: int, total: int | None, title: str) -> int:
    """Copy to the end, or to where the connection breaks; the bytes that are there now."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=have)
        while True:
            try:
                piece = answer.read(CHUNK)
            except (OSError, http.client.HTTPException):
                return have
            if not piece:
                return have
            file.write(piece)
            have += len(piece)
            bar.update(task, completed=have)
