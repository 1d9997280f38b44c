"""Images and label maps of all modes, formats and sizes, whole and damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ovss_bench as ob
from fuzz.common import damaged, inputs, outcome
from ovss_bench.image import read_image, resize

MODES = {  # of Pillow, and the formats that hold them
    "1": ["PNG", "TIFF", "BMP", "GIF", "PPM"],
    "L": ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"],
    "LA": ["PNG", "TIFF"],
    "P": ["PNG", "TIFF", "BMP", "GIF"],
    "RGB": ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"],
    "RGBA": ["PNG", "TIFF", "WEBP", "BMP"],
    "CMYK": ["JPEG", "TIFF"],
    "YCbCr": ["JPEG", "TIFF"],
    "LAB": ["TIFF"],
    "I;16": ["PNG", "TIFF"],
    "I": ["TIFF"],
    "F": ["TIFF"],
}
EXACT = {("L", "PNG"), ("RGB", "PNG"), ("L", "BMP"), ("RGB", "BMP"), ("RGB", "PPM"), ("L", "TIFF"), ("RGB", "TIFF")}
SIZES = st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([(1, 1), (1, 700), (700, 1), (257, 3)]))


def picture(mode, size, seed, limit=256):
    rng = np.random.default_rng(seed)
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, size).astype(bool))
    if mode in ("I", "F", "I;16"):
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(rng.integers(0, 70000 if mode == "I" else limit, size).astype(dtype))
    if mode == "P":
        image = Image.fromarray(rng.integers(0, limit, size).astype(np.uint8))
        image.putpalette(bytes(rng.integers(0, 256, 768).astype(np.uint8)))
        return image
    channels = {"L": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    array = rng.integers(0, limit, (*size, channels)).astype(np.uint8)
    return Image.frombytes(mode, size[::-1], array.tobytes())


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


ANY_PICTURE = st.sampled_from([(mode, kind) for mode, kinds in MODES.items() for kind in kinds])


def check_image(data, path):
    path.write_bytes(data)
    result = outcome(read_image, path)
    if isinstance(result, ob.OvssError):
        assert str(path) in str(result)
        return None
    assert result.dtype == np.uint8
    assert result.ndim == 3
    assert result.shape[2] == 3
    assert min(result.shape) > 0
    assert result.flags["C_CONTIGUOUS"]
    return result


@inputs(0.1)
@given(which=ANY_PICTURE, size=SIZES, seed=st.integers(0, 99), turn=st.integers(0, 8))
def test_whole_images_are_read(tmp_path_factory, which, size, seed, turn):
    mode, kind = which
    image = picture(mode, size, seed)
    exif = Image.Exif()
    if turn and kind == "JPEG":
        exif[0x0112] = turn
    data = encoded(image, kind, **({"exif": exif} if len(exif) else {}))
    result = check_image(data, tmp_path_factory.getbasetemp() / "image")
    if result is None:
        assert which not in EXACT
        assert mode not in ("1", "L", "P", "RGB", "RGBA")
        return
    assert result.shape[:2] == (size[::-1] if kind == "JPEG" and turn >= 5 else size)
    if which in EXACT:
        assert np.array_equal(result, np.array(image.convert("RGB")))


@inputs(0.15)
@given(which=ANY_PICTURE, size=SIZES, data=st.data())
def test_damaged_images_are_named(tmp_path_factory, which, size, data):
    content = data.draw(damaged(encoded(picture(which[0], size, 1), which[1])))
    check_image(content, tmp_path_factory.getbasetemp() / "image")


@inputs(0.03)
@given(
    content=st.binary(max_size=200), start=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
)
def test_what_is_no_image_is_named(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "image"
    check_image(start + content, path)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 5)])
def test_sizes_that_cannot_be_are_named(size, end, tmp_path):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + (png_chunk(b"IEND", b"") if end else b""))
    assert isinstance(outcome(read_image, path), ob.OvssError)


RULES = ["keep_ratio", "patch_multiple", "square", "square_bilinear", "center_crop", "none"]


@inputs(0.05)
@given(
    size=SIZES,
    rule=st.sampled_from(RULES),
    short=st.integers(1, 90),
    long=st.integers(1, 300),
    patch=st.sampled_from([8, 14, 16]),
)
def test_images_of_all_sizes_are_resized(size, rule, short, long, patch):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = resize(image, rule, short, long, patch)
    assert result.dtype == np.uint8
    assert result.shape[2] == 3
    assert min(result.shape) > 0


@inputs(0.05)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)).filter(lambda size: max(size) <= 12 * min(size)),
    rule=st.sampled_from(RULES),
    window=st.sampled_from([16, 24, 40, "whole"]),
    pad=st.sampled_from(["none", "center", "corner", "corner_black"]),
    multiple=st.sampled_from([None, 8, 28]),
    scored_at=st.sampled_from(["original", "resized"]),
    position=st.sampled_from(["offset", "size", "grid", "antialias", "bilinear"]),
)
def test_images_of_all_sizes_are_segmented(size, rule, window, pad, multiple, scored_at, position):
    clip = ob.load_clip("demo")
    vocabulary = ob.Vocabulary.from_names(["sand", "red cloth", "blue cloth"], templates="none")
    overrides = {"resize": rule, "window": window, "pad": pad, "pad_multiple": multiple, "stride": 16, "position": position}
    overrides |= {"short_side": 32, "long_side": 96, "scored_at": scored_at}
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)

    def segment():
        segmentor = ob.build_segmentor("sclip", clip=clip, vocabulary=vocabulary, **overrides)
        return ob.segment(segmentor, image, output_size=size)

    result = outcome(segment)
    if not isinstance(result, ob.OvssError):
        assert result.label_map.shape == size
        assert result.scores.isfinite().all()


OWN = "images: photos\nlabels: masks\nimage_suffix: .png\nlabel_suffix: .{suffix}\nclasses: [a, b, c, d]\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`data(bytes, suffix)`: a data set of one photo, with these bytes as its mask."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("photos", "masks"):
        (folder / name).mkdir()

    def of(photo, mask, suffix):
        (folder / "photos/0.png").write_bytes(photo)
        (folder / f"masks/0.{suffix}").write_bytes(mask)
        (folder / f"own_{suffix}.yaml").write_text(OWN.format(suffix=suffix))
        return ob.load_dataset(folder / f"own_{suffix}.yaml")

    return of


def label_of(dataset):
    (sample,) = dataset.samples
    return dataset.label(sample, dataset.image(sample).shape[:2])


@inputs(0.1)
@given(
    which=ANY_PICTURE,
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    other=st.sampled_from([None, None, None, (5, 5), (1, 31)]),
    limit=st.sampled_from([4, 4, 4, 5, 256]),
    fraction=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masks_of_all_modes(data, which, size, other, limit, fraction, seed):
    mode, kind = which
    mask = picture(mode, other or size, seed, limit)
    if mode == "I":
        mask = Image.fromarray(np.array(mask) % limit)
    if mode == "F" and fraction:
        mask = Image.fromarray(np.array(mask) + np.float32(0.5))
    content = encoded(mask, kind)
    written = np.array(Image.open(io.BytesIO(content)))
    result = outcome(label_of, data(encoded(picture("RGB", size, 0), "PNG"), content, kind.lower()))
    right = written.shape == size and set(np.unique(written).astype(float)) <= {0, 1, 2, 3, 255}
    assert isinstance(result, np.ndarray) == right, result
    if right:
        assert np.array_equal(result, written)


@inputs(0.1)
@given(which=ANY_PICTURE, draw=st.data())
def test_damaged_masks(data, which, draw):
    photo = encoded(picture("RGB", (9, 12), 0), "PNG")
    content = draw.draw(damaged(encoded(picture(which[0], (9, 12), 1, 4), which[1])))
    result = outcome(label_of, data(photo, content, which[1].lower()))
    if not isinstance(result, ob.OvssError):
        assert result.shape == (9, 12)
        assert set(np.unique(result)) <= {0, 1, 2, 3, 255}
