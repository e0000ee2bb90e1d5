import io
import os
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image

from mnet_cli.data import images
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.images import (
    Photograph,
    decode_image,
    open_photograph,
    read_image,
    times_smaller,
)
from mnet_cli.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 32, height: int = 16) -> Image.Image:
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(row[None], height, 0)).convert("RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = decode_image(encoded(gradient().convert(mode), kind), "x")
    assert (image.mode, image.size) == ("RGB", (32, 16))
    assert np.asarray(image)[0, -1].min() > 200 > 60 > np.asarray(image)[0, 0].max()


def test_sixteen_bit_grey_is_rescaled_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    image = decode_image(encoded(Image.fromarray(values)), "x")
    assert np.abs(np.asarray(image)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_floating_point_pixels_are_refused():
    content = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match="floating-point"):
        decode_image(content, "x")


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0)])
def test_transparency_shows_the_background(background):
    clear = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    assert decode_image(encoded(clear), "x", background).getpixel((3, 3)) == background


def test_palette_transparency_shows_the_background():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    content = encoded(image, transparency=0)
    assert decode_image(content, "x", (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def png(kind: int, pixels: np.ndarray, clear: tuple[int, ...]) -> bytes:
    """A PNG of 16 bits a channel in which one value is transparent."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    transparent = struct.pack(f">{len(clear)}H", *clear)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in (*chunks, (b"IEND", b"")))


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def test_transparent_sixteen_bit_grey_shows_the_background():
    grey = np.asarray([[1000, 1001, 40_000]] * 2)
    image = decode_image(png(0, grey, (1000,)), "x", (1, 2, 3))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(1, 2, 3), (4,) * 3, (156,) * 3]


def test_transparent_sixteen_bit_colour_shows_the_background():
    colours = np.asarray([[(0x1234, 0x5678, 0x9ABC), (0xFFFF, 0, 0)]] * 2)
    image = decode_image(png(2, colours, (0x1234, 0x5678, 0x9ABC)), "x", (1, 2, 3))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), (255, 0, 0)]


def test_a_small_value_is_transparent_in_sixteen_bits_too():
    colours = np.asarray([[(200, 200, 200), (200 * 256, 200 * 256, 200 * 256)]] * 2)
    image = decode_image(png(2, colours, (200, 200, 200)), "x", (1, 2, 3))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), (200, 200, 200)]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (31, 15)), (6, (15, 0))])
def test_exif_orientation_is_applied(orientation, corner):
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(image, exif=exif), "x")
    assert upright.size == ((16, 32) if orientation == 6 else (32, 16))
    assert upright.getpixel(corner) == (0, 0, 0)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content, "x").getpixel((0, 0))[0] > 200


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"just text", "not an image"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (encoded(gradient(256, 256), "JPEG")[:400], "damaged"),
        (encoded(gradient())[:60], "damaged"),
        (encoded(gradient())[:50] + b"\xff" + encoded(gradient())[51:], "damaged"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_the_reason(content, reason):
    with pytest.raises(DataError, match=reason):
        decode_image(content, "x")


def test_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="32x16 pixels"):
        decode_image(encoded(gradient()), "x")


def test_image_too_thin_to_resize_is_refused():
    with pytest.raises(DataError, match="1x2000 pixels"):
        decode_image(encoded(Image.new("RGB", (1, 2000))), "x")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as the decoder does outside of pytest
def test_broken_orientation_data_is_a_damaged_image():
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03"
    content = encoded(gradient(), "JPEG", exif=exif)
    try:
        assert decode_image(content, "x").mode == "RGB"
    except DataError as error:
        assert "damaged" in str(error)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(DataError, match="not an image in a supported format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x")


def test_file_faults_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    for name, reason in [
        ("pipe.jpg", "not a regular file"),
        ("empty.jpg", "0 bytes"),
        ("dangling.jpg", "cannot be read"),
        ("missing.jpg", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=reason):
            read_image(FileImage(tmp_path / name))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_known_upright_before_anything_is_decoded(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    photograph = open_photograph(FileImage(path), (255, 255, 255))
    assert photograph.size == photograph.decode().size
    assert photograph.size == ((40, 30) if orientation < 5 else (30, 40))


def photo(width: int = 203, height: int = 150) -> Image.Image:
    """A picture with edges and noise, whose JPEG has something in every block."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    smooth = gradient(width, height).resize((width, height))
    smooth.paste("orange", (20, 30, 90, 100))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def adobe(image: Image.Image) -> bytes:
    """A JPEG in CMYK with its colours transformed and inverted, as Photoshop writes it."""
    values = np.asarray(image.convert("CMYK"))
    return simplejpeg.encode_jpeg(np.ascontiguousarray(values), colorspace="CMYK")


JPEGS = {
    **{f"4:{name} progressive={p}": encoded(photo(), "JPEG", subsampling=f"4:{name}", progressive=p)
       for name in ("4:4", "2:2", "2:0") for p in (False, True)},
    **{f"{name} by another encoder": simplejpeg.encode_jpeg(np.asarray(photo()), 80, "RGB", name)
       for name in ("440", "411")},
    **{f"quality {quality}": encoded(photo(), "JPEG", quality=quality) for quality in (5, 60, 100)},
    **{f"size {size}": encoded(photo(*size), "JPEG") for size in ((97, 9), (16, 16), (33, 65))},
    "restart markers": encoded(photo(), "JPEG", restart_marker_blocks=3),
    "grey": encoded(photo().convert("L"), "JPEG"),
    "RGB": encoded(photo(), "JPEG", keep_rgb=True),
    "CMYK": encoded(photo().convert("CMYK"), "JPEG"),
    "CMYK 4:2:0": encoded(photo().convert("CMYK"), "JPEG", subsampling=2),
    "Adobe": adobe(photo()),
    "odd revision": encoded(photo(), "JPEG").replace(b"JFIF\0\1", b"JFIF\0\5", 1),
}  # fmt: skip


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(kind, times):
    whole = Image.open(io.BytesIO(JPEGS[kind]))
    if times > 1:
        whole.draft(None, (whole.width // times, whole.height // times))
    found = Photograph(JPEGS[kind], "x").decode(times)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(whole.convert("RGB")))


@pytest.mark.parametrize("times", [1, 2, 4])
def test_damage_in_the_middle_of_a_jpeg_is_a_fault_with_libjpegs_words(times):
    content = bytearray(encoded(photo(), "JPEG"))
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    Image.open(io.BytesIO(content)).load()  # Pillow alone sees no fault
    with pytest.raises(DataError, match=r"damaged image \(Corrupt JPEG data: .*"):
        Photograph(bytes(content), "x").decode(times)


def test_bytes_behind_a_jpegs_end_are_no_damage():
    content = encoded(photo(), "JPEG")
    assert decode_image(content + bytes(100), "x") == decode_image(content, "x")


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4"])
def test_bytes_between_the_segments_of_a_jpegs_header_are_no_damage(marker):
    content = encoded(photo(), "JPEG")
    place = content.index(marker)
    found = decode_image(content[:place] + b"\x01" + content[place:], "x")
    assert np.array_equal(np.asarray(found), np.asarray(decode_image(content, "x")))


@pytest.mark.parametrize("kind", [b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_a_png_is_a_fault(kind):
    content = bytearray(encoded(photo()))
    at = content.index(kind) - 4
    checksum = at + 8 + int.from_bytes(content[at : at + 4], "big")
    content[checksum] ^= 1
    with pytest.raises(DataError, match="damaged image"):
        decode_image(bytes(content), "x")


def test_a_png_without_its_end_is_a_fault():
    with pytest.raises(DataError, match="cut off before its IEND chunk"):
        decode_image(encoded(photo())[:-12], "x")


@pytest.mark.parametrize(("times", "size"), [(1, (401, 302)), (2, (201, 151)), (4, (101, 76))])
def test_a_jpeg_is_decoded_smaller_on_request_and_a_png_is_not(tmp_path, times, size):
    for suffix, expected in (("jpg", size), ("png", (401, 302))):
        path = tmp_path / f"large.{suffix}"
        Image.effect_noise((401, 302), 40).convert("RGB").save(path)
        photograph = open_photograph(FileImage(path), (255, 255, 255))
        assert photograph.decode(times).size == expected
        assert photograph.decode().size == photograph.size == (401, 302)


def test_decoding_smaller_leaves_pixels_to_spare():
    assert [times_smaller(surplus) for surplus in (0.5, 1, 3.9, 4, 7.9, 8, 60)] == [
        1, 1, 1, 2, 2, 4, 4,
    ]  # fmt: skip


def test_a_truncated_jpeg_is_refused_at_any_size(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((400, 300), 40).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for times in (1, 2, 4):
        with pytest.raises(DataError, match="damaged"):
            open_photograph(FileImage(path), (255, 255, 255)).decode(times)


def test_a_png_bomb_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 24_000, 24_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(24_000 * 3 + 1) * 400)  # decoding would fail for lack of rows
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    with pytest.raises(DataError, match="more than 100,000,000"):
        decode_image(bomb, "bomb.png")
