"""FreeCP's step: boxes by hand, vocabularies that the official code refuses, descriptions, and windows that say nothing."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.inference.engine import predict
from ovss_bench.ops.boxes import in_boxes, outline_boxes
from parity.seeded import query_features, rgb_image

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad": "none", "rp_thres": 0.02, "ap_thres": 0.5, "crop_side": 32}


def build(clip, vocabulary, base="sclip", **values):
    return ob.build_segmentor(base, refine="freecp", clip=clip, vocabulary=vocabulary, **SMALL | values)


def test_boxes_are_those_of_the_outlines():
    heat = np.zeros((8, 9), np.float32)
    heat[1:3, 2:5] = 1.0
    heat[3, 5] = 0.5  # touches by a corner: the same region
    heat[6:8, 7:9] = 0.6  # at the border
    heat[5, 0] = 0.4  # floor(255 * 0.4) is not above floor(0.4 * 255)
    assert sorted(outline_boxes(heat)) == [(2, 1, 6, 4), (7, 6, 8, 7)]
    masks = in_boxes(np.stack([heat, np.zeros_like(heat)]))
    assert masks[0].sum() == 4 * 3 + 1
    assert not masks[1].any()
    assert outline_boxes(np.zeros((4, 4), np.float32)) == [(0, 0, 0, 0)]


def test_a_hole_has_a_box_of_its_own():
    heat = np.zeros((9, 9), np.float32)
    heat[1:7, 1:7] = 1.0
    heat[3:5, 3:5] = 0.0
    assert sorted(outline_boxes(heat)) == [(1, 1, 7, 7), (2, 2, 6, 6)]


@pytest.mark.parametrize("base", ["clip", "maskclip", "sclip", "clearclip", "naclip", "gem"])
def test_planes_are_maps_of_foreground_classes_and_the_rest(base, tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary, base, pamr_steps=0)
    result = ob.segment(segmentor, rgb_image(3, 90, 120))
    assert result.scores.shape == (4, 90, 120)
    assert torch.equal(result.scores[0], 1 - result.scores[1:].amax(0))
    assert torch.equal(result.label_map, result.scores.argmax(0))
    assert result.scores[1:].amax() > 0.5


@pytest.mark.parametrize(("group", "background"), [([0, 0], True), ([0, 1, 1, -1, 2], 1), ([0, 1, 2], None), ([0], None)])
@pytest.mark.parametrize("image", [np.full((70, 90, 3), 128, np.uint8), rgb_image(5, 70, 90)], ids=["flat", "noise"])
def test_any_vocabulary_and_image_get_labels(group, background, image, tiny_clip):
    vocabulary = ob.Vocabulary.from_features(query_features(31, len(group)), group, background=background)
    result = ob.segment(build(tiny_clip, vocabulary), image)
    assert result.scores.isfinite().all()
    assert set(result.label_map.unique().tolist()) <= set(group)


def test_only_overlapping_classes_meet_on_a_crop(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    maps = torch.zeros(1, 4, 4, 4)
    maps[:, :2, :2, :2] = 1
    maps[:, 2, 3, 3] = 1
    batch = ob.WindowBatch(F.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 64))
    crop = segmentor.crop(batch.pixels[0], (0, 0, 2, 2))
    segmentor.described = torch.stack([-(g := segmentor.embed_crops([crop])[0]), g, g, g])
    assert segmentor.unambiguous(maps, torch.ones(1, 4, dtype=torch.bool), batch).tolist() == [[False, True, True, True]]
    first = torch.tensor([[True, False, True, False]])
    assert torch.equal(segmentor.unambiguous(maps, first, batch), first)
    maps[:, :2] = 0
    maps[:, :2, 3, 3] = 1  # the last patch is in no box, so all stay
    assert segmentor.unambiguous(maps, torch.ones(1, 4, dtype=torch.bool), batch).all()


def test_descriptions_replace_prompts_where_there_are_some(tmp_path):
    clip, path = ob.load_clip("demo"), tmp_path / "texts.json"
    path.write_text(json.dumps({"water": ["a blue lake.", "wet waves."]}))
    values = {"clip": clip, "vocabulary": ["sand", "water"], "refine": "freecp"}
    plain, described = ob.build_segmentor("sclip", **values), ob.build_segmentor("sclip", descriptions=path, **values)
    assert torch.equal(plain.described, plain.text)
    expected = F.normalize(clip.encode_text(["a blue lake.", "wet waves."]).mean(0), dim=0)
    torch.testing.assert_close(described.described, torch.stack([plain.text[0], expected]))
    path.write_text("[1]")
    broken = ob.build_segmentor("sclip", descriptions=path, **values)
    with pytest.raises(ob.OvssError, match=r"^descriptions=.*texts\.json: expected \{name"):
        _ = broken.described


def test_thresholds_of_the_base_method_have_no_effect_and_are_noted():
    recipe = ob.compose_recipe("sclip+freecp", dataset="voc21")
    assert (recipe.hyperparameters["rp_thres"], recipe.hyperparameters["ap_thres"]) == (0.15, 0.8)
    data = ob.load_dataset("demo").vocabulary("demo", "notebook7")
    segmentor = ob.build_segmentor("sclip", clip="demo", vocabulary=data, refine="freecp")
    assert segmentor.recipe.origins["logit_scale"].endswith("without effect on this method")
    with pytest.raises(ob.OvssError, match=r"^threshold=0.3 .*has no effect on sclip\+freecp"):
        ob.build_segmentor("sclip", clip="demo", vocabulary=data, refine="freecp", threshold=0.3)
    checked = type(segmentor).checked_recipe(recipe)
    assert checked.origins["threshold"].endswith("without effect on this method")


def test_padding_of_a_batch_changes_nothing(tiny_clip, tiny_vocabulary):
    segmentor = build(tiny_clip, tiny_vocabulary)
    images = [("a", rgb_image(3, 90, 120)), ("b", rgb_image(4, 80, 100))]
    one, other = ({key: found.label_map for key, (found,) in predict([segmentor], images, batch=batch)} for batch in (1, 16))
    assert all((one[key] == other[key]).float().mean() > 0.999 for key in one)
