"""Images are read and resized as mmcv's cv2 backend does it, or refused with one clear message."""

import io
import struct

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile, Resize
from PIL import Image, TiffImagePlugin
from torchvision import transforms

import ovss_bench as ob
from ovss_bench.image import read_image, resize, resize_target, result_size
from ovss_bench.ops.nearest import opencv_nearest
from parity.seeded import rgb_image

COLOUR = rgb_image(5, 37, 52)
GREY = COLOUR[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + 77


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)


def png_of(array):
    return mmcv.image.io.cv2.imencode(".png", array)[1].tobytes()


def tiff_of(array):
    return mmcv.image.io.cv2.imencode(".tiff", array)[1].tobytes()


JPEG = encoded(Image.fromarray(COLOUR), "JPEG")
PNG = encoded(Image.fromarray(COLOUR), "PNG")
PROGRESSIVE = encoded(Image.fromarray(COLOUR), "JPEG", progressive=True)
# An EXIF thumbnail is a whole JPEG with an end marker of its own.
THUMBNAIL = encoded(Image.fromarray(COLOUR[:8, :8]), "JPEG")
APP1 = b"Exif\0\0" + THUMBNAIL
WITH_THUMBNAIL = JPEG[:2] + b"\xff\xe1" + (len(APP1) + 2).to_bytes(2, "big") + APP1 + JPEG[2:]

ODD = {
    "jpeg": JPEG,
    "progressive": PROGRESSIVE,
    "thumbnail": WITH_THUMBNAIL,
    "grey_jpeg": encoded(Image.fromarray(GREY), "JPEG"),
    "grey_png": encoded(Image.fromarray(GREY), "PNG"),
    "16bit_grey_png": png_of(DEEP),
    "16bit_rgb_png": png_of(np.stack([DEEP, DEEP // 2, DEEP // 3], -1)),
    "16bit_rgb_tiff": tiff_of(np.stack([DEEP, DEEP // 2, DEEP // 3], -1)),
    "1bit_png": encoded(Image.fromarray(GREY).convert("1"), "PNG"),
    "rgba_png": encoded(Image.fromarray(np.dstack([COLOUR, GREY])), "PNG"),
    "grey_alpha_png": encoded(Image.fromarray(GREY).convert("LA"), "PNG"),
    "palette_png": encoded(Image.fromarray(COLOUR).quantize(16), "PNG"),
    "cmyk_jpeg": encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "bmp": encoded(Image.fromarray(COLOUR), "BMP"),
    "webp": encoded(Image.fromarray(COLOUR), "WEBP"),
    **{f"exif_{orientation}": rotated(orientation) for orientation in range(1, 9)},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_read_as_mmcv_reads_them(name, tmp_path):
    path = tmp_path / "image.any"
    path.write_bytes(ODD[name])
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, mmcv.imread(path, backend="cv2")[..., ::-1])
    loaded = LoadImageFromFile(imdecode_backend="cv2").transform({"img_path": str(path)})["img"]
    assert np.array_equal(image, loaded[..., ::-1])


def test_exif_rotation_swaps_the_sides(tmp_path):
    (tmp_path / "a.jpg").write_bytes(rotated(6))
    assert read_image(tmp_path / "a.jpg").shape == (52, 37, 3)


@pytest.mark.parametrize("trailing", [b"\0", b"x" * 500, b"\xff\xda more"])
@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_bytes_after_the_end_are_accepted(data, trailing, tmp_path):
    (tmp_path / "whole").write_bytes(data)
    (tmp_path / "longer").write_bytes(data + trailing)
    assert np.array_equal(read_image(tmp_path / "longer"), read_image(tmp_path / "whole"))


TRUNCATED = {
    f"{name}_{cut}": data[: int(cut * len(data))]
    for name, data in {"jpeg": JPEG, "png": PNG, "progressive": PROGRESSIVE, "thumbnail": WITH_THUMBNAIL}.items()
    for cut in (0.01, 0.1, 0.25, 0.5, 0.75, 0.97)
}
BROKEN = {
    "empty": b"",
    "text": b"this is not an image\n" * 20,
    "html": b"<html>404 not found</html>",
    "thumbnail_only": WITH_THUMBNAIL[: len(APP1) + 6],
    "markers_only": b"\xff\xd8 nothing \xff\xda between \xff\xd9",
    "png_signature_only": PNG[:8] + b"IEND",
    "png_damaged_inside": PNG[:2000] + bytes(255 - byte for byte in PNG[2000:2008]) + PNG[2008:],
    "cut_before_the_end": JPEG[:-20],
}


def tiff(array, bits=None, kind=1, photometric=1, extra=None):
    """A TIFF file (H, W, bands) of one strip; `bits` where they are not those of the array, whose bytes are then packed."""
    height, width, bands = array.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    tags = {256: width, 257: height, 258: (bits or 8 * array.itemsize,) * bands, 259: 1, 262: photometric, 273: 0}
    tags |= {277: bands, 278: height, 279: array.nbytes, 339: (kind,) * bands}
    tags |= {338: tuple(extra)} if extra else {}
    for tag, value in tags.items():
        directory[tag] = value
    return b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + array.tobytes()


def many(bands, dtype=np.uint8, scale=1):
    return (np.arange(20 * 30 * bands).reshape(20, 30, bands) % 251 * scale).astype(dtype)


SENSOR = GREY.astype(np.uint16) * 16  # 12 bits in 16
ODD_KINDS = {
    "12 bits in a PNG": (png_of(SENSOR), "16 bits a band, but 99 %"),
    "12 bits in a PNG of colours": (png_of(np.dstack([SENSOR] * 3)), "16 bits a band, but 99 %"),
    "12 bits under a bright alpha": (png_of(np.dstack([SENSOR] * 3 + [SENSOR * 0 + 65535])), "16 bits a band, but 99 %"),
    "12 bits in a TIFF of 16": (tiff_of(SENSOR), "16 bits a band, but 99 %"),
    "12 bits in a TIFF of 12": (tiff(many(3), bits=12, photometric=2), "12 bits a band"),
    "reflectances": (tiff(many(3, np.uint16, 40), photometric=2), "16 bits a band, but 99 %"),
    "12 bits in a PGM": (b"P5 # of a sensor\n30 20\n4095\n" + many(1, ">u2", 16).tobytes(), "up to 4095"),
    "4 bits in a PGM": (b"P5\n30 20 15\n" + (many(1) % 16).tobytes(), "up to 15"),
    "two bands": (tiff(many(2)), "2 bands"),
    "four bands of no colour": (tiff(many(4), extra=[0, 0, 0]), "4 bands"),
    "Lab": (tiff(many(3), photometric=8), "CIE Lab"),
    "five bands": (tiff(many(5), photometric=2, extra=[0, 0]), "5 bands"),
    "thirteen bands of 16 bits": (tiff(many(13, np.uint16, 200), extra=[0] * 12), "13 bands"),
    **{f"float{8 * size}": (tiff(many(1, f"f{size}") / 250, kind=3), "floating point") for size in (2, 4, 8)},
    "float in colours": (tiff(many(3, np.float32), kind=3, photometric=2), "floating point numbers of 32 bits"),
    **{f"int{8 * size}": (tiff(many(1, f"i{size}"), kind=2), f"signed numbers of {8 * size} bits") for size in (1, 2, 4)},
    "uint32": (tiff(many(1, np.uint32)), "32 bits a band"),
    "4 bits of grey": (tiff(many(1), bits=4), "4 bits a band"),
    "radiance": (mmcv.image.io.cv2.imencode(".hdr", np.float32(COLOUR) / 255)[1].tobytes(), "float32"),
}


@pytest.mark.parametrize("name", ODD_KINDS)
def test_what_eight_bits_do_not_hold_is_refused_by_kind(name, tmp_path):
    data, said = ODD_KINDS[name]
    path = tmp_path / "scan.tif"
    path.write_bytes(data)
    with pytest.raises(ob.OvssError, match=rf"scan\.tif holds .*{said}.* 8 bits a band, scaled"):
        read_image(path)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (tiff(many(4), photometric=2, extra=[0]), many(4)[..., :3]),
        (tiff(many(2), extra=[2]), many(2)[..., :1].repeat(3, 2)),
        (tiff(many(1, np.uint16, 256)), many(1).repeat(3, 2)),
        (tiff(many(3, np.uint16, 0), photometric=2), many(3, scale=0)),
        (tiff(many(3), photometric=2), many(3)),
        (b"P5\n30 20 255\n" + (many(1) // 20).tobytes(), (many(1) // 20).repeat(3, 2)),
        (png_of(many(1)[..., 0] // 20), (many(1) // 20).repeat(3, 2)),
    ],
    ids=["infrared", "alpha", "full16", "black16", "rgb", "dark8 pgm", "dark8 png"],
)
def test_what_is_read_of_other_depths_and_bands(data, wanted, tmp_path):
    (tmp_path / "a").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a"), wanted)


@pytest.mark.parametrize("name", [*TRUNCATED, *BROKEN])
def test_unreadable_images_are_refused_by_name(name, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes((TRUNCATED | BROKEN)[name])
    with pytest.raises(ob.OvssError, match=r"photo\.jpg"):
        read_image(path)


@pytest.mark.parametrize("path", ["missing.jpg", "."])
def test_a_missing_image_is_refused_by_name(path, tmp_path):
    with pytest.raises(ob.OvssError, match=str(tmp_path / path)):
        read_image(tmp_path / path)


@pytest.mark.parametrize("size", [(37, 52), (52, 37), (100, 100), (333, 500), (20, 160), (160, 20), (7, 9), (401, 63)])
@pytest.mark.parametrize("short_side", [40, 61, 336])
def test_keep_ratio_is_mmcvs_resize(size, short_side):
    image = rgb_image(6, *size)
    expected = Resize(scale=(2048, short_side), keep_ratio=True).transform({"img": image[..., ::-1].copy()})["img"]
    assert np.array_equal(resize(image, "keep_ratio", short_side, 2048, 16), expected[..., ::-1])


@pytest.mark.parametrize("size", [(150, 200), (200, 150), (333, 500), (501, 332), (30, 31)])
def test_center_crop_is_torchvisions(size):
    """CLIPtrase: Resize(side, bicubic), CenterCrop(side) of a PIL image; labels alike, nearest."""
    image = rgb_image(8, *size)
    target = image[..., 0].astype(np.int32) * 300
    for side in (64, 97):
        for array, rule in ((image, "BICUBIC"), (target, "NEAREST")):
            steps = transforms.Compose(
                [transforms.Resize(side, transforms.InterpolationMode[rule]), transforms.CenterCrop(side)]
            )
            expected = np.array(steps(Image.fromarray(array)))
            actual = (
                resize(image, "center_crop", side, 2048, 16)
                if rule == "BICUBIC"
                else resize_target(target, "center_crop", (side, side))
            )
            assert np.array_equal(actual, expected)


def test_patch_multiple_rounds_each_side_for_itself():
    """CLIPer: int(side * size / short / P + 0.5) * P, Pillow bicubic."""
    image = rgb_image(9, 150, 211)
    expected = np.array(Image.fromarray(image).resize((22 * 16, 16 * 16), Image.Resampling.BICUBIC))
    assert int(211 * 240 / 150 / 16 + 0.5) == 21
    assert resize(image, "patch_multiple", 240, 2048, 16).shape == (240, 21 * 16, 3)
    assert np.array_equal(resize(image, "patch_multiple", 250, 2048, 16), expected)


def test_square_bilinear_is_cv2s():
    image = rgb_image(9, 150, 211)
    assert np.array_equal(resize(image, "square_bilinear", 64, 2048, 16), cv2.resize(image, (64, 64)))


def test_truth_and_result_have_the_size_that_the_protocol_names():
    assert result_size("original", (150, 211), (64, 64)) == (150, 211)
    assert result_size("resized", (150, 211), (64, 64)) == (64, 64)
    assert result_size("short_448", (150, 211), (64, 64)) == (448, int(448 * 211 / 150))
    assert result_size("short_448", (211, 150), (64, 64)) == (int(448 * 211 / 150), 448)
    target = np.array([[1, 2], [3, 400]], np.int32)
    assert resize_target(target, "square_bilinear", (2, 4)).tolist() == [[1, 1, 2, 2], [3, 3, 400, 400]]


def test_labels_are_enlarged_as_cv2_does():
    labels = torch.from_numpy(np.random.RandomState(0).randint(0, 30, (256, 256)))
    for size in ((448, 597), (123, 91), (256, 256)):
        expected = cv2.resize(labels.numpy().astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(opencv_nearest(labels, size), expected)


def test_keep_ratio_obeys_the_long_side():
    image = rgb_image(6, 30, 300)
    expected = Resize(scale=(448, 448), keep_ratio=True).transform({"img": image})["img"]
    assert np.array_equal(resize(image, "keep_ratio", 448, 448, 16), expected)
    assert resize(np.zeros((1, 3000, 3), np.uint8), "keep_ratio", 336, 500, 16).shape == (1, 500, 3)


@pytest.mark.parametrize("options", [{"resize": "none"}, {"short_side": 48}, {"resize": "none", "window": "whole"}], ids=str)
@pytest.mark.parametrize("size", [(50, 1), (1, 50), (1, 1), (7, 9), (15, 70), (150, 30), (30, 40), (64, 64)], ids=str)
def test_degenerate_images_are_segmented(size, options, tiny_clip, tiny_vocabulary):
    segmentor = ob.build_segmentor("sclip", clip=tiny_clip, vocabulary=tiny_vocabulary, window=64, stride=32)
    prediction = ob.segment(segmentor, rgb_image(7, *size) if min(size) > 1 else np.full((*size, 3), 90, np.uint8), **options)
    assert prediction.label_map.shape == size
    assert prediction.scores.shape == (4, *size)
    assert prediction.scores.isfinite().all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=lambda a: f"{a.shape}{a.dtype}",
)
def test_arrays_that_are_no_rgb_image_are_refused(image, tiny_clip, tiny_vocabulary):
    segmentor = ob.build_segmentor("clip", clip=tiny_clip, vocabulary=tiny_vocabulary)
    with pytest.raises(ob.OvssError, match="RGB image"):
        ob.segment(segmentor, image)
