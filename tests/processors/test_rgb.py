"""Opening images: every mode to 8-bit RGB by the stated rule, and messages for what does not open."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from bita.errors import UserError
from bita.processors.rgb import ImageOpener, Stretch, open_rgb, stretch_to_uint8


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    image = open_rgb(save(tmp_path / f"x{suffix}", Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("RGBA", (3, 3), (10, 20, 30, 0)))
    assert open_rgb(path).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_stretched_between_percentiles(tmp_path: Path, suffix: str) -> None:
    samples = np.linspace(1000, 5000, 10_000).reshape(100, 100).astype(np.uint16)
    image = np.asarray(open_rgb(save(tmp_path / f"x{suffix}", Image.fromarray(samples))))
    assert image.shape == (100, 100, 3)
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 255)
    assert abs(int(image[50, 0, 0]) - 127) <= 1
    assert (image[:2] == 0).mean() > 0.9


def test_floating_point_with_nan_and_flat_images(tmp_path: Path) -> None:
    samples = np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20)
    samples[0, 0] = np.nan
    image = np.asarray(open_rgb(save(tmp_path / "x.tif", Image.fromarray(samples))))
    assert image.max() == 255
    assert image.min() == 0
    assert stretch_to_uint8(np.full((4, 4, 3), 700, np.uint16)).max() == 0


def test_bands_of_an_eight_bit_image(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (3, 3), (10, 20, 30)))
    assert ImageOpener(bands=(3, 2, 1)).open(path).getpixel((0, 0)) == (30, 20, 10)
    with pytest.raises(UserError, match=r"x\.png: bands \[4, 1, 1\] are not three numbers from 1 to 3"):
        ImageOpener(bands=(4, 1, 1)).open(path)


def test_draft_decodes_a_large_jpeg_smaller_but_never_below_what_is_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", Image.new("RGB", (800, 400)))
    assert open_rgb(path).size == (800, 400)
    assert ImageOpener(draft=(150, 90)).open(path).size == (200, 100)
    assert ImageOpener(draft=(700, 300)).open(path).size == (800, 400)


def test_missing_broken_and_truncated_images_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jpg: image is missing"):
        open_rgb(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    whole = save(tmp_path / "whole.jpg", Image.fromarray(_noise()))
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:2000])
    for name in ("text.jpg", "half.jpg"):
        with pytest.raises(UserError, match=f"{name}: image does not open") as caught:
            open_rgb(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
@pytest.mark.parametrize(("low", "high", "fill"), [(-31.5, 2000.25, None), (10, 9000, -9999.0), (7, 7, 0.0)])
def test_samples_of_sixteen_bits_are_looked_up_as_others_are_computed(
    kind: type, low: float, high: float, fill: float | None
) -> None:
    stretch = Stretch(low, high, fill)
    every = np.arange(1 << 16, dtype=np.uint16).view(kind).reshape(256, 256).T
    wide, valid = every.astype(np.int32), every % 3 > 0
    for mask in (None, valid):
        assert stretch(every, mask).tolist() == stretch(wide, mask).tolist()
        assert (stretch.measured(every, mask) == stretch.measured(wide.astype(float), mask)).all()


@pytest.mark.parametrize(("kind", "mode"), [(".png", "1"), (".tif", "1"), (".gif", "L")])
def test_decompression_bombs_are_refused(tmp_path: Path, kind: str, mode: str) -> None:
    """By what the header promises: nothing of it is decoded."""
    path = save(tmp_path / f"x{kind}", Image.new(mode, (20, 10)))
    sizes = {".png": (">II", 16), ".gif": ("<HH", 6)}
    content = bytearray(path.read_bytes())
    if kind == ".tif":
        tifffile.imwrite(path, np.zeros((10, 20), np.uint8))
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in (256, 257):
                file.pages.first.tags[tag].overwrite(20_000)
    else:
        form, at = sizes[kind]
        struct.pack_into(form, content, at, 20_000, 20_000)
        if kind == ".png":
            struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\{kind}: image is refused \(.*0000.*cut it into tiles"):
        open_rgb(path)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_multi_band_sixteen_bit_tiffs_are_stretched_band_by_band(tmp_path: Path, planar: str) -> None:
    ramp = np.linspace(0, 1, 2500).reshape(50, 50)
    bands = np.stack(
        [1000 + 3000 * ramp, 500 - 400 * ramp, np.full_like(ramp, 7), 60_000 * ramp, ramp]
    ).astype("u2")
    samples = bands if planar == "separate" else np.moveaxis(bands, 0, -1)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="minisblack", planarconfig=planar)
    first = np.asarray(open_rgb(tmp_path / "x.tif"))
    assert (first[0, 0].tolist(), first[-1, -1].tolist()) == ([0, 255, 0], [255, 0, 0])
    chosen = np.asarray(ImageOpener(bands=(4, 3, 1)).open(tmp_path / "x.tif"))
    assert (chosen[0, 0].tolist(), chosen[-1, -1].tolist()) == ([0, 0, 0], [255, 0, 255])
    assert abs(int(chosen[25, 0, 0]) - 127) <= 3


def test_eight_bit_bands_keep_their_values(tmp_path: Path) -> None:
    samples = np.arange(6 * 6 * 6, dtype=np.uint8).reshape(6, 6, 6)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="minisblack", planarconfig="contig")
    assert (np.asarray(open_rgb(tmp_path / "x.tif")) == samples[:, :, :3]).all()
    assert (
        np.asarray(ImageOpener(bands=(6, 5, 4)).open(tmp_path / "x.tif")) == samples[:, :, [5, 4, 3]]
    ).all()
    (tmp_path / "broken.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:60])
    with pytest.raises(UserError, match=r"broken\.tif: image does not open"):
        open_rgb(tmp_path / "broken.tif")


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_other_contents_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.png").mkdir()
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((4, 4), np.complex64))
    tifffile.imwrite(tmp_path / "lab.tif", np.zeros((4, 4, 3), np.uint8), photometric="cielab")
    for name, reason in (
        ("empty.jpg", "the file is empty"),
        ("folder.png", "Is a directory"),
        ("complex.tif", "samples of complex64; wanted whole or real numbers"),
        ("lab.tif", "3 samples a pixel of colour space CIELAB; convert it to RGB"),
    ):
        with pytest.raises(UserError) as caught:
            open_rgb(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: image does not open ({reason})"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
            "a Git LFS pointer, not the file",
        ),
        (b"<!DOCTYPE html><title>Sign in</title>", "an HTML page (Sign in), not the file itself"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "compressed (gzip); unpack it"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIF image; convert it to PNG or TIFF"),
        (
            b"\x89HDF\r\n\x1a\n" + bytes(40),
            "an HDF5 file of a kind that is not read; convert it to PNG or TIFF",
        ),
        (bytes(40), "nothing but zeros; its download broke off, fetch it again"),
        (b'{"error": "not found"}', "none of TIFF, JPEG, PNG"),
    ],
)
def test_what_is_in_the_place_of_an_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (
        lambda: open_rgb(tmp_path / "a.jpg"),
        lambda: ImageOpener().decode(content, str(tmp_path / "a.jpg")),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).startswith(
            f"{tmp_path / 'a.jpg'}: image does not open (its content is {said}"
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_container(tmp_path: Path, orientation: int) -> None:
    """The draft of a JPEG and a PIL image that is not loaded yet are turned as well, and once."""
    scene = Image.fromarray(_noise()[:40]).resize((96, 60))
    exif = Image.Exif()
    exif[274] = orientation
    expected = ImageOps.exif_transpose(_tagged(scene, exif))
    for name in ("x.png", "x.webp", "x.tif", "x.jpg"):
        path = tmp_path / name
        options = {"quality": 100, "subsampling": 0} if name == "x.jpg" else {}
        scene.save(path, exif=exif, **options, **({"lossless": True} if name == "x.webp" else {}))
        assert open_rgb(path).size == expected.size
        difference = np.asarray(open_rgb(path)).astype(int) - np.asarray(expected)
        assert abs(difference).max() <= (40 if name == "x.jpg" else 0)
        with Image.open(path) as image:
            assert ImageOpener().convert(image).tobytes() == open_rgb(path).tobytes()
    half = ImageOpener(draft=(30, 30)).open(tmp_path / "x.jpg")
    assert half.size == (expected.width // 2, expected.height // 2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_upright_image_is_not_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(_noise()).resize((40, 20)).save(tmp_path / "x.jpg", exif=exif)
    upright = open_rgb(tmp_path / "x.jpg")
    assert upright.size == (20, 40)
    assert np.array_equal(ImageOpener().convert(upright), upright)


def test_a_broken_exif_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(_noise()).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with Image.open(path) as image:
        assert open_rgb(path).tobytes() == image.convert("RGB").tobytes()


def test_real_images_open_to_the_pixels_that_pillow_gives(bita_data: Path) -> None:
    for file in sorted(bita_data.glob("*_captions/*/*.jpg"))[::100]:
        with Image.open(file) as image:
            assert open_rgb(file).tobytes() == image.convert("RGB").tobytes()


def test_one_scene_has_the_same_pixels_in_every_container(tmp_path: Path) -> None:
    """16 bits in PNG and TIFF, in a TIFF called .png, compressed, with transparency, from a folder or from bytes."""
    scene = np.random.default_rng(3).integers(200, 3005, (40, 50, 3)).astype(np.uint16)
    opaque = np.full((40, 50, 1), 65535, np.uint16)
    tifffile.imwrite(tmp_path / "plain.tif", scene, photometric="rgb")
    tifffile.imwrite(tmp_path / "named.png", scene, photometric="rgb", compression="lzw", predictor=True)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(scene))
    (tmp_path / "alpha.jpg").write_bytes(imagecodecs.png_encode(np.concatenate([scene, opaque], axis=2)))
    (tmp_path / "deep.jp2").write_bytes(imagecodecs.jpeg2k_encode(scene))
    expected = open_rgb(tmp_path / "plain.tif").tobytes()
    for name in ("named.png", "deep.png", "alpha.jpg", "deep.jp2"):
        assert open_rgb(tmp_path / name).tobytes() == expected, name
        assert ImageOpener().decode((tmp_path / name).read_bytes(), name).tobytes() == expected, name


@pytest.mark.parametrize("nodata", ["-9999", "nan", "mask"])
def test_what_has_no_data_counts_for_no_percentile(tmp_path: Path, nodata: str) -> None:
    scene = np.linspace(280, 500, 2400, dtype=np.float32).reshape(40, 60)
    holed = scene.copy()
    holed[:, :10] = 0 if nodata == "mask" else float(nodata)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        tags = [(42113, "s", 0, nodata, True)] if nodata != "mask" else []
        file.write(holed, extratags=tags, metadata=None)
        if nodata == "mask":
            file.write(holed > 0, subfiletype=4, photometric="mask", metadata=None)
    pixels = np.asarray(open_rgb(tmp_path / "x.tif"))
    assert (pixels[:, :10] == 0).all()
    assert (pixels[:, 10:, 0] == stretch_to_uint8(scene[:, 10:])).all()
    assert pixels.max() == 255


@pytest.mark.parametrize(
    ("fill", "kind"), [(-9999, "f4"), (-9999, "i2"), (-32768, "i2"), (-3.4028235e38, "f4"), (1e35, "f8")]
)
def test_what_an_image_is_filled_with_counts_without_a_tag(tmp_path: Path, fill: float, kind: str) -> None:
    scene = np.linspace(-280, 500, 2400).reshape(40, 60).astype(kind)
    holed = scene.copy()
    holed[:, :10] = fill
    tifffile.imwrite(tmp_path / "x.tif", holed)
    pixels = np.asarray(open_rgb(tmp_path / "x.tif"))
    assert (pixels[:, :10] == 0).all()
    assert (pixels[:, 10:, 0] == stretch_to_uint8(scene[:, 10:])).all()


def test_a_number_that_files_are_filled_with_is_one_only_where_it_is_the_lowest() -> None:
    scene = np.linspace(-12000, -9000, 3001).reshape(1, -1)
    assert -9999 in scene
    assert stretch_to_uint8(scene)[0, 2001] == round(255 * (2001 - 60) / (2940 - 60))


def _tagged(image: Image.Image, exif: Image.Exif) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return Image.open(file)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="it has no pixels"):
        ImageOpener().convert(Image.new("RGB", (0, 5)))
