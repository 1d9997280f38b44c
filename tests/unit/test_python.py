"""The objects of the Python interface as a notebook has them: what they take, print and refuse."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ovss_bench as ob
from ovss_bench.image import as_image
from parity.seeded import rgb_image

RGB = rgb_image(3, 60, 80)


@pytest.fixture(scope="module")
def segmentor():
    return ob.build_segmentor("sclip", clip="demo", vocabulary=["sand", ["red cloth", "red"], "<b>blue</b>"], short_side=64)


@pytest.fixture(scope="module")
def data():
    return ob.load_dataset("demo")


def test_paths_pictures_and_arrays_are_the_same_image(segmentor, tmp_path):
    expected = ob.segment(segmentor, RGB).label_map
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    views = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(RGB), Image.open(tmp_path / "photo.png")]
    views.append(np.ascontiguousarray(RGB[..., ::-1])[..., ::-1])  # from OpenCV's order: not contiguous
    for image in views:
        assert torch.equal(ob.segment(segmentor, image).label_map, expected)
        assert ob.make_context(image, segmentor).resized.shape == (64, 85, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16"])
def test_pictures_of_all_modes_are_read_as_files_of_them_are(mode, tmp_path):
    picture = Image.fromarray(RGB)
    if mode == "I;16":
        picture = Image.fromarray(257 * RGB[..., 0].astype(np.uint16))
    picture = picture.convert("L").convert(mode) if mode in ("LA", "PA") else picture.convert(mode)
    found = as_image(picture)
    assert found.shape == RGB.shape
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture.save(tmp_path / "image.png")
        assert np.array_equal(found, ob.read_image(tmp_path / "image.png"))
    assert found.std() > 10
    if mode == "I;16":
        assert np.array_equal(found, as_image(picture.convert("I")))


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(RGB).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    from_file, picture = ob.read_image(tmp_path / "photo.jpg"), as_image(Image.open(tmp_path / "photo.jpg"))
    assert from_file.shape == picture.shape
    assert np.abs(from_file.astype(int) - picture).mean() < 1  # two decoders of JPEG


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "not NoneType"),
        ([RGB, RGB], "not list; one image at a time"),
        (torch.zeros(8, 8, 3), "not Tensor"),
        (b"bytes", "not bytes"),
        (RGB[..., 0], "For grey images or alpha"),
        (RGB[None], r"not \(1, 60, 80, 3\)"),
        (RGB.astype(float), "0..255 and round"),
        (RGB > 3, "type bool"),
        (np.zeros((0, 8, 3), np.uint8), r"not \(0, 8, 3\)"),
        (np.array("text"), "RGB image"),
        (Image.new("F", (8, 8)), "floating point"),
        (Image.new("RGB", (0, 8)), "8 x 0 pixels"),
        (Image.fromarray(np.full((4, 4), -5, np.int32)), "not 16 bits"),
        ("nowhere.png", "image nowhere.png cannot be read"),
        (".", "cannot be read"),
    ],
)
def test_what_is_no_image_is_one_error(image, message, segmentor):
    with pytest.raises(ob.OvssError, match=message):
        ob.segment(segmentor, image)


@pytest.mark.parametrize(
    "size",
    [(0, 0), (0, 5), (-3, 5), (5.0, 5), (True, 5), (5,), (5, 5, 5), 5, "5x5", (math.nan, 5), (10**6, 5), {5, 6}, ("5", "5")],
)
def test_sizes_that_are_none_are_one_error(size, segmentor):
    with pytest.raises(ob.OvssError, match=r"output_size=.*expected \(height, width\)"):
        ob.segment(segmentor, RGB, output_size=size)


@pytest.mark.parametrize(
    "values",
    [{"window": 0}, {"window": 5.5}, {"window": "all"}, {"stride": 0}, {"stride": 999}, {"short_side": -1},
     {"short_side": True}, {"resize": "larger"}, {"logit_scale": -1.0}, {"threshold": math.nan},
     {"threshold": 0.5}, {"threshold": "high"}],
    ids=str,
)  # fmt: skip
def test_other_values_of_segment_that_cannot_be_are_one_error(values, segmentor):
    with pytest.raises(ob.OvssError):
        ob.segment(segmentor, RGB, **values)


@pytest.mark.parametrize("size", [(7, 9), [7, 9], np.array([7, 9]), (np.int64(7), 9)])
def test_sizes_of_whole_numbers_are_taken(size, segmentor):
    assert ob.segment(segmentor, RGB, output_size=size).label_map.shape == (7, 9)


def test_other_things_that_are_not_what_they_should_be(segmentor):
    with pytest.raises(ob.OvssError, match=r"expected a segmentor, as ob\.build_segmentor makes it, not str"):
        ob.segment("sclip", RGB)
    for vocabulary in ("cat", 3, None):
        with pytest.raises(ob.OvssError, match="expected a Vocabulary or a list of class names"):
            ob.build_segmentor("sclip", clip=segmentor.clip, vocabulary=vocabulary)
    for clip, message in ((3, "expected a loaded CLIP"), ("dmo", "unknown clip 'dmo'")):
        with pytest.raises(ob.OvssError, match=message):
            ob.build_segmentor("sclip", clip=clip, vocabulary=["a", "b"])
    with pytest.raises(ob.OvssError, match="templates='photo' has no effect"):
        ob.build_segmentor("sclip", clip=segmentor.clip, vocabulary=segmentor.vocabulary, templates="photo")


def test_a_clip_is_loaded_by_name_and_classes_get_the_recipes_templates(segmentor):
    assert (segmentor.clip.name, segmentor.vocabulary.templates, segmentor.recipe.window) == ("demo", "notebook7", 56)
    assert segmentor.vocabulary.queries == ("sand", "red cloth", "red", "<b>blue</b>")


def test_data_sets_are_sequences(data):
    assert len(data) == len(list(data)) == 100
    assert data[0] == next(iter(data)) == data["scene_000"]
    assert data[-1].id == "scene_099"
    assert [sample.id for sample in data[2:8:3]] == ["scene_002", "scene_005"]
    for key, message in (
        (100, "there are 100 images"),
        ("scene", "unknown image id"),
        (1.5, "expected an index"),
        (True, "True"),
    ):
        with pytest.raises(ob.OvssError, match=message):
            data[key]
    with pytest.raises(IndexError):
        data[100]


def test_the_vocabulary_of_a_data_set_has_a_default(data, voc):
    assert data.vocabulary().digest == data.vocabulary("demo", "imagenet80").digest
    dataset = ob.load_dataset("voc21", voc)
    assert dataset.vocabulary().digest == dataset.vocabulary(None, "imagenet80").digest


def test_everything_prints_in_a_line_or_two(segmentor, data):
    prediction, result = (
        ob.segment(segmentor, RGB),
        ob.evaluate(
            ob.build_segmentor("clip", clip=segmentor.clip, vocabulary=data.vocabulary("demo", "notebook7")), data, limit=2
        ),
    )
    things = [segmentor, segmentor.clip, segmentor.vocabulary, data, prediction, result, ob.make_context(RGB, segmentor)]
    for thing in [*things, ob.WindowBatch(torch.zeros(2, 3, 8, 8))]:
        lines = repr(thing).splitlines()
        assert len(lines) <= 2
        assert all(len(line) < 250 for line in lines)
    assert "3 classes" in repr(segmentor)
    assert "100 images, 37 classes" in repr(data)
    assert "60 x 80 pixels" in repr(prediction)
    assert result.per_class.loc["plain red cloth"].keys().tolist()[:2] == ["IoU", "Acc"]
    assert len(result.per_class) == 37
    assert result._repr_html_().count("<td>") == len(result.metrics)
    json.dumps(result.data)


def test_a_prediction_knows_its_classes_and_shows_itself(segmentor, tmp_path):
    prediction = ob.segment(segmentor, RGB)
    assert prediction.classes == ("sand", "red cloth", "<b>blue</b>")
    assert sum(prediction.shares.values()) == pytest.approx(1)
    prediction.label_map = prediction.label_map.clone()
    prediction.label_map[:10] = 3  # no class
    assert prediction.shares["no class"] >= 10 / 60
    assert "<b>" not in prediction._repr_html_()
    overlay = prediction.overlay(RGB)
    assert (overlay.shape, overlay.dtype) == (RGB.shape, np.uint8)
    assert np.array_equal(prediction.overlay(Image.fromarray(RGB)), overlay)
    assert prediction.overlay(cv2.resize(RGB, (160, 120))).shape == RGB.shape
    assert prediction.overlay(RGB, legend=True).shape[1] > 2 * 80


def test_progress_is_shown_where_it_is_wanted(segmentor, data, capsys):
    own = ob.build_segmentor("clip", clip=segmentor.clip, vocabulary=data.vocabulary("demo", "notebook7"))
    ob.evaluate(own, data, limit=1)
    assert capsys.readouterr().err == ""
    ob.evaluate(own, data, limit=1, progress=True)
    assert "clip on demo: 1 images" in capsys.readouterr().err


def test_the_public_names_are_the_interface():
    assert dir(ob) == sorted(ob.__all__)
    assert {"SlidingWindow", "resize", "normalize", "read_image"} <= set(dir(ob))
    assert all(getattr(ob, name) is not None for name in dir(ob))


def test_windows_resize_and_normalise_are_public():
    resized = ob.resize(RGB, "keep_ratio", 96, 2048, 16)
    windows = ob.SlidingWindow.of(*resized.shape[:2], 64, 32, 16, "none")
    assert [tuple(window.shape) for window in windows.cut(ob.normalize(resized, "clip"))] == [(3, 64, 64)] * len(
        windows.origins
    )
    for wrong in (
        lambda: ob.resize(RGB, "bigger", 96, 2048, 16),
        lambda: ob.resize(RGB, "square", 0, 2048, 16),
        lambda: ob.resize(RGB / 255, "square", 96, 2048, 16),
        lambda: ob.normalize(RGB, "mean"),
        lambda: ob.normalize(RGB[..., 0], "clip"),
        lambda: ob.SlidingWindow.of(96, 96, 64, 0, 16, "none"),
        lambda: ob.SlidingWindow.of(96, 96, 64, 80, 16, "none"),
        lambda: ob.SlidingWindow.of(96, 96, "half", 32, 16, "none"),
        lambda: ob.SlidingWindow.of(96, 96, 64, 32, 16, "centre"),
    ):
        with pytest.raises(ob.OvssError):
            wrong()


def test_types_are_shipped():
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    root = str(ob.read_image.__globals__["__file__"]).rpartition("/ovss_bench/")[0]
    for builder in (SdistBuilder, WheelBuilder):
        files = {file.relative_path for file in builder(root).recurse_included_files()}
        assert "ovss_bench/py.typed" in files


def test_ids_and_limits_of_other_types(data):
    one = data[3]
    for ids in (one.id, [one.id], (one,), np.array([one.id])):
        assert data.select(ids=ids) == [one]
    for limit in (0, 1.5, "3", True):
        with pytest.raises(ob.OvssError, match="limit="):
            data.select(limit)
    with pytest.raises(ob.OvssError) as caught:
        data.select(ids=["nope"])
    assert len(str(caught.value)) < 300


def test_what_would_be_without_effect_or_fail_later_is_refused(segmentor, data):
    for names, more, message in (
        (["a", 3], {}, "class 1 is 3"),
        (["a", "b"], {"names": "sclip"}, "names='sclip' has no effect"),
        (["a", "b"], {"regions": 3}, "regions=3: expected"),
    ):
        with pytest.raises(ob.OvssError, match=message):
            ob.build_segmentor("corrclip", clip=segmentor.clip, vocabulary=names, **more)
    own = ob.build_segmentor("sclip", clip=segmentor.clip, vocabulary=data.vocabulary(templates="photo"))
    own.threshold = 0.7
    for values, message in (({}, "threshold was set"), ({"runtime": {"batch": 2}}, "runtime=.*ob.Runtime")):
        with pytest.raises(ob.OvssError, match=message):
            ob.evaluate(own, data, limit=1, **values)


def test_notebooks_show_clips_and_segmentors(segmentor):
    for each in (segmentor, segmentor.clip):
        assert each._repr_html_().startswith(f"<pre>{type(each).__name__}(")


@pytest.mark.parametrize("load", [ob.load_clip, ob.load_dataset])
def test_what_is_no_name_is_one_error(load):
    with pytest.raises(ob.OvssError, match="3: expected a name"):
        load(3)


def test_text_features_may_be_an_array():
    features = np.eye(3, 5, dtype=np.float32)
    assert ob.Vocabulary.from_features(features).digest == ob.Vocabulary.from_features(torch.from_numpy(features)).digest
