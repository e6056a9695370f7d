"""The page in a browser: an image or a scene and boxes in it, many images, search by words."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from bita.app import views
from bita.app.batching import Closed, QueueFull
from bita.app.dropped import LONGEST, Box, Dropped
from bita.app.engine import Engine
from bita.errors import UserError
from bita.inference.aligner import no_stage_1
from bita.inference.captions import Caption
from bita.inference.index import Vectors, search
from bita.inference.outputs import FORMATS, record_of
from bita.inference.sources import content_hash

MANY = 200
"""Images of the second and third tab at a time."""
FOUND = 12
"""Images that a search shows."""
DRAWN = 448
"""Side to which a small picture is enlarged, so that a box can be drawn on it."""
CLICK = 256
"""Pixels a side around a click."""
KEPT, LOOKED_EVERY = 3600, 60
"""Seconds that an uploaded file is kept, and between two looks for such files."""
QUEUE = 32
"""Requests of the page that may wait."""
MAPS = 40
"""Most words whose maps can be chosen."""
TEMPLATES = files("bita.app") / "templates"
HEAD = """<h1>BITA</h1><p>Captions for aerial and satellite images. Model {model} on {device}.
Nothing is sent elsewhere. <a href="/docs">For programs</a></p>"""
START = "Drop an image on the left. Then draw a box on it to caption a part."

Found = tuple[list[tuple[str, Image.Image]], Vectors]
"""Images that can be searched, and their vectors (N, Q, E)."""


class Page:
    """What the page does; every function gives what a part of it shows.

    Args:
        engine: whose model answers.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def drop(self, path: str | None) -> tuple[Dropped | None, dict[str, str], str]:
        """A file came or went: the file, its picture, its caption."""
        if path is None:
            return None, {}, views.hint(START)
        try:
            dropped = Dropped.open(Path(path), self.engine)
            picture = dropped.window(dropped.whole)
        except UserError as error:
            return None, {}, views.error(error)
        says = f"{dropped.where(dropped.whole)}. Draw a box, or click, to caption a part."
        stage = {
            "name": dropped.path.name,
            "says": says,
            "picture": views.data_url(picture, LONGEST, least=DRAWN),
        }
        if not dropped.captioned_whole:
            return (
                dropped,
                stage,
                views.hint("Draw a box on the scene, or click on it, to caption what is there."),
            )
        return dropped, stage, self._caption(dropped, dropped.whole, picture)

    def select(self, dropped: Dropped | None, event: gr.EventData) -> str:
        """A box was drawn: what is in it."""
        if dropped is None:
            return views.hint(START)
        sides = tuple(float(side) for side in event.box)
        box = dropped.box_of(
            sides, CLICK if max(dropped.size) > 2 * CLICK else max(8, min(dropped.size) // 3)
        )
        try:
            return self._caption(dropped, box, dropped.window(box))
        except UserError as error:
            return views.error(error)

    def whole(self, dropped: Dropped | None) -> str:
        """Caption everything."""
        if dropped is None:
            return views.hint(START)
        try:
            return self._caption(dropped, dropped.whole, dropped.window(dropped.whole))
        except UserError as error:
            return views.error(error)

    def many(self, paths: list[str] | None) -> Iterator[tuple[str, Any, Any, list[str] | None]]:
        """Caption many images: cards, a table, records as JSON lines, and the files that are left for another time."""
        given = [Path(path) for path in paths or []][:MANY]
        left = (paths or [])[MANY:]
        if not given:
            yield views.hint("Drop images first."), _download(None), _download(None), None
            return
        shown: list[dict[str, Any]] = []
        records: list[Any] = []
        for start in range(0, len(given), self.engine.limits.batch):
            for path, image, found in self._captioned(given[start : start + self.engine.limits.batch]):
                failed = found if isinstance(found, UserError) else None
                record = found if isinstance(found, Caption) else None
                shown.append(views.card(path.name, image, record, error=failed))
                content = content_hash(path)
                records.append(record_of(Path(path.name), content, found, self.engine.captioner.hash, ""))
            yield views.cards(shown), _download(None), _download(None), paths
        table, lines = (_download(_written(records, suffix)) for suffix in (".csv", ".jsonl"))
        said = f"{MANY} are captioned; {len(left)} are left: take what you need of these, then caption the others."
        yield (views.hint(said) if left else "") + views.cards(shown), table, lines, left or None

    def gather(self, paths: list[str] | None) -> tuple[Found | None, str]:
        """Images to be searched came: what is kept of them, and what went wrong."""
        with self.engine.lock:
            if paths and self.engine.captioner.stage1 is None:
                return None, views.error(no_stage_1("this model", "start the page with --checkpoint and"))
        opened: list[tuple[str, Image.Image]] = []
        wrong: list[dict[str, Any]] = []
        embedded: list[Tensor] = []
        for path in [Path(path) for path in paths or []][:MANY]:
            try:
                image = self.engine.open_file(path)
                with self.engine.lock:
                    embedded.append(self.engine.captioner.embed_images(image))
            except UserError as error:
                wrong.append(views.card(path.name, None, error=error))
                continue
            image.thumbnail((320, 320))
            opened.append((path.name, image))
        if not opened:
            return None, views.cards(wrong) if wrong else views.hint("Drop the images to be searched.")
        left = max(0, len(paths or []) - MANY)
        more = f"; {left} more than can be taken were left out" if left else ""
        said = views.hint(f"{len(opened)} images can be searched{more}. Say what you look for.")
        return (opened, torch.cat(embedded).half().numpy()), said + (views.cards(wrong) if wrong else "")

    def search(self, text: str, found: Found | None) -> str:
        """Rank images by how well they fit words."""
        if found is None:
            return views.hint("Drop the images to be searched first.")
        if not text.strip():
            return views.hint("Say what you look for, such as: two planes beside a terminal.")
        try:
            with self.engine.lock:
                texts = self.engine.captioner.embed_texts(text[:500])
        except UserError as error:
            return views.error(error)
        (ranked,) = search(found[1], texts, FOUND)
        return views.cards([views.card(*found[0][place], score=score) for place, score in ranked])

    def _caption(self, dropped: Dropped, box: Box, image: Image.Image) -> str:
        """Caption a window, with other candidates and where the model looked."""
        captioner = self.engine.captioner
        try:
            with self.engine.lock:
                several = min(3, captioner.settings.num_beams)
                (record,) = captioner.stream([image], num_captions=several, use_nucleus_sampling=False)
                try:
                    look = captioner.look(image, caption=record, occlusion=0)
                except UserError:  # a bridge without cross-attention, a caption without words
                    look = None
        except UserError as error:
            return views.error(error)
        if look is not None and len(look.words) > MAPS - 1:
            del look.words[MAPS - 1 :]
        return views.result(record, image, look, dropped.where(box))

    def _captioned(self, paths: list[Path]) -> Iterator[tuple[Path, Image.Image | None, Caption | UserError]]:
        """Caption files in one batch of the service's queue."""
        waiting: list[Any] = []
        for path in paths:
            try:
                image = self.engine.open_file(path)
                waiting.append((path, image, self.engine.caption(image)))
            except UserError as error:
                waiting.append((path, None, error))
            except (QueueFull, Closed):
                waiting.append((path, None, UserError(f"{path.name}: too many requests wait; try again")))
        for path, image, found in waiting:
            yield path, image, found if isinstance(found, UserError) else found.result()


def _download(path: str | None) -> Any:
    """Return what a button becomes that downloads a file; None: there is none yet."""
    return gr.update(value=path, interactive=path is not None)


def _written(records: list[Any], suffix: str) -> str:
    """Write records to a temporary file; return its path."""
    form = FORMATS[suffix]
    lines = ([form.header] if form.header else []) + [form.write(record) for record in records]
    path = Path(tempfile.mkdtemp()) / f"captions{suffix}"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return str(path)


def blocks(engine: Engine) -> gr.Blocks:
    """Return the page."""
    page = Page(engine)
    captioner = engine.captioner
    with gr.Blocks(title="BITA", analytics_enabled=False, delete_cache=(LOOKED_EVERY, KEPT)) as made:
        gr.HTML(HEAD.format(model=captioner.hash, device=captioner.model.device), elem_classes="head")
        with gr.Tabs(overflow_behavior="wrap"):  # on a phone too, all are in sight
            with gr.Tab("Image or scene"):
                _one(page)
            with gr.Tab("Many images"):
                _many(page)
            with gr.Tab("Search"):
                _search(page)
    made.queue(max_size=QUEUE, default_concurrency_limit=2, api_open=False)
    return made


def _one(page: Page) -> None:
    """Build the first tab."""
    dropped = gr.State(None, time_to_live=KEPT)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            file = gr.File(label="Image or scene", height=140, elem_id="file")
            stage = gr.HTML(
                {},
                html_template=(TEMPLATES / "stage.html").read_text("utf-8"),
                js_on_load=(TEMPLATES / "stage.js").read_text("utf-8"),
                elem_id="stage",
            )
            whole = gr.Button("Caption all of it", size="sm")
        with gr.Column(scale=1, min_width=320):
            shown = gr.HTML(views.hint(START), elem_id="result")
    quiet: dict[str, Any] = {"api_visibility": "private"}
    file.change(page.drop, file, [dropped, stage, shown], **quiet, show_progress_on=shown)
    stage.select(page.select, dropped, shown, **quiet)
    whole.click(page.whole, dropped, shown, **quiet)
    whole.click(
        None, js="() => { document.querySelectorAll('#stage .box').forEach(box => box.hidden = true) }"
    )


def _many(page: Page) -> None:
    """Build the second tab."""
    files_ = gr.File(label=f"Images, {MANY} at a time", file_count="multiple", height=160, elem_id="files")
    with gr.Row():
        go = gr.Button("Caption them", variant="primary")
        table = gr.DownloadButton("Table (CSV)", interactive=False)
        lines = gr.DownloadButton("Records (JSONL)", interactive=False)
    shown = gr.HTML(views.hint("Each image gets a caption; the table has all of them."), elem_id="cards")
    go.click(
        page.many, files_, [shown, table, lines, files_], api_visibility="private", show_progress_on=shown
    )


def _search(page: Page) -> None:
    """Build the third tab."""
    found = gr.State(None, time_to_live=KEPT)
    files_ = gr.File(
        label=f"Images to be searched, {MANY} at most", file_count="multiple", height=160, elem_id="pool"
    )
    with gr.Row():
        text = gr.Textbox(
            label="What you look for",
            placeholder="two planes beside a terminal",
            scale=4,
            max_length=500,
            elem_id="words",
        )
        go = gr.Button("Search", variant="primary", scale=1, min_width=120)
    shown = gr.HTML(views.hint("Drop the images to be searched."), elem_id="found")
    files_.change(page.gather, files_, [found, shown], api_visibility="private", show_progress_on=shown)
    for asked in (go.click, text.submit):
        asked(page.search, [text, found], shown, api_visibility="private", show_progress_on=shown)


def mount(app: Any, engine: Engine) -> Any:
    """Put the page at the root of an application."""
    limits = engine.limits
    return gr.mount_gradio_app(
        app,
        blocks(engine),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=max(limits.image_bytes, limits.scene_bytes),
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="teal",
            neutral_hue="slate",
            radius_size="lg",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css=(TEMPLATES / "page.css").read_text("utf-8") + views.word_rules(MAPS),
    )
