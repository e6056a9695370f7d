"""Many image files → captions, on standard output or in a file that a second start goes on with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bita.errors import UserError
from bita.inference.captioner import Captioner
from bita.inference.captions import Caption
from bita.inference.outputs import RecordFile, name_of, record_of, text_line
from bita.inference.sources import ImageFile, content_hash
from bita.machine import in_threads


def print_captions(
    captioner: Captioner,
    images: Sequence[Path],
    *,
    named: bool = True,
    batch_size: int = 16,
    **settings: Any,
) -> int:
    """Print a line an image, as a file of records that ends in `.txt` has it; how many do not open.

    Why an image does not open is said on standard error.

    Args:
        captioner: a trained model.
        images: files.
        named: whether a line begins with the image's name; else it is the captions alone, or empty.
        batch_size: images encoded at a time.
        settings: what `Captioner.stream` takes.

    Raises:
        UserError: standard output cannot be written.
    """
    failed = 0
    found = captioner.results(map(ImageFile, images), batch_size=batch_size, score=False, **settings)
    with progress(len(images), shown=not sys.stdout.isatty()) as step:
        for path, record in zip(images, found, strict=True):
            if isinstance(record, UserError):
                failed += 1
                print(f"error: {record}", file=sys.stderr, flush=True)
            said = [f"error: {record}"] if isinstance(record, UserError) else record.candidates
            line = text_line(name_of(path), said)
            _say(line if named else "" if isinstance(record, UserError) else line.split("\t", 1)[1])
            step()
    return failed


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"standard output cannot be written ({error.strerror})") from None


def write_captions(
    captioner: Captioner, images: Sequence[Path], out: RecordFile, *, batch_size: int = 16, **settings: Any
) -> int:
    """Add a record an image to a file, but for those that are in it with the same content; how many do not open.

    Images are captioned in the batches in which they are given, also where some of a batch are done already: an
    interrupted file is in the end the same, to the last digit, as one that was not.

    Raises:
        UserError: the file cannot be written.
    """
    images = list(dict.fromkeys(images))
    known = [path for path in images if name_of(path) in out.done]
    now = dict(zip(known, in_threads(content_hash, known), strict=True))
    changed = {
        name_of(path) for path in known if out.done[name_of(path)].get("sha256", now[path]) != now[path]
    }
    if changed:
        out.drop(changed)
    lacking = {path for path in images if name_of(path) not in out.done}
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    files = [ImageFile(path) for batch in batches if not lacking.isdisjoint(batch) for path in batch]
    failed = sum(bool(out.done[name_of(path)]["error"]) for path in images if path not in lacking)
    if not lacking:
        print(f"{len(images)} of {len(images)} images are in {out.path} already", file=sys.stderr, flush=True)
    with progress(len(lacking)) as step:
        found = captioner.results(files, batch_size=batch_size, **settings) if files else iter(())
        for file, record in zip(files, found, strict=True):
            if file.path in lacking:
                out.add(record_of(file.path, file.sha256, record, captioner.hash, out.settings))
                failed += not isinstance(record, Caption)
                step()
    return failed


@contextlib.contextmanager
def progress(total: int, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error, with images a second and the time that is left; what moves it by one."""
    if not (total and shown and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )

    class Speed(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.finished_speed or task.speed or 0:.1f} images/s"

    columns = (BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
