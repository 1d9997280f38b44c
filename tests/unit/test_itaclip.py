"""ITACLIP: altered copies of a window, mixed texts, the closing, and the files of texts."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur, rgb_to_grayscale

import ovss_bench as ob
from ovss_bench.config.recipe import compose_recipe
from ovss_bench.errors import OvssError
from ovss_bench.files import CONFIGS, config_names
from ovss_bench.ops.image_engineering import blur, grey, image_engineering
from ovss_bench.segmentors.features import read_texts
from ovss_bench.segmentors.itaclip import closed
from parity.seeded import query_features

TEXTS = sorted(file for file in (CONFIGS / "texts").glob("*.txt") if not file.stem.startswith("clip_es"))


def build(clip, vocabulary, **options):
    return ob.build_segmentor("itaclip", clip=clip, vocabulary=vocabulary, **options)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(48, 64), (6, 31)])
def test_grey_and_blurred_copies_are_torchvisions(size):
    pixels = randn(2, 3, *size)
    torch.testing.assert_close(grey(pixels), rgb_to_grayscale(pixels, 3))
    torch.testing.assert_close(blur(pixels), gaussian_blur(pixels, 11, 5.0), rtol=0, atol=1e-6)


def test_image_engineering_is_the_official_order(tiny_clip, tiny_vocabulary):
    """Unit features averaged, maps enlarged, flipped back and mixed."""
    segmentor = build(tiny_clip, tiny_vocabulary)
    pixels, size = randn(2, 3, 50, 70), (50, 70)

    def unit(pixels):
        trunk = segmentor.trunk(ob.WindowBatch(pixels))
        return tiny_clip.head(segmentor.last_block(tiny_clip.block(-1, trunk.grid), trunk)[:, 1:]), trunk.grid

    def enlarged(features, grid):
        maps = (features @ segmentor.text.T).transpose(1, 2).unflatten(2, grid)
        return F.interpolate(maps, size, mode="bilinear")

    copies = [unit(x) for x in (pixels, rgb_to_grayscale(pixels, 3), gaussian_blur(pixels, 11, 5.0))]
    first = enlarged(sum(features for features, _ in copies) / 3, copies[0][1])
    second = [enlarged(*unit(pixels.flip(axis))).flip(axis) for axis in (2, 3)]
    expected = 0.75 * first + 0.25 * (second[0] + second[1]) / 2
    found = F.interpolate(segmentor.patch_logits(ob.WindowBatch(pixels)), size, mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_flips_cost_nothing_without_weight_and_altered_windows_have_no_places():
    seen = []

    def cosines(batch):
        seen.append(batch)
        return batch.pixels[:, :2]

    batch = ob.WindowBatch(randn(2, 3, 8, 8), origins=torch.zeros(2, 2), images=torch.zeros(2), contexts=[None], padding=1)
    image_engineering(cosines, batch, 1)
    assert len(seen) == 3
    image_engineering(cosines, batch, 0.7)
    assert len(seen) == 8
    assert seen[0] is seen[3] is batch
    assert all((copy.contexts, copy.origins, copy.padding) == (None, None, 1) for copy in seen[4:])


@pytest.mark.parametrize("part", [{"img_engineering": False}, {"img_eng_coefficient": 0.5}, {"middle_blocks": (7,)}])
def test_every_part_changes_the_cosines(part, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(randn(1, 3, 64, 64))
    one, other = (build(tiny_clip, tiny_vocabulary, **options).patch_logits(batch) for options in ({}, part))
    assert (one - other).abs().max() > 1e-5


@pytest.mark.parametrize("blocks", [(0, 7), (7, 12), (13,)])
def test_middle_blocks_are_in_the_tower(blocks, tiny_clip, tiny_vocabulary):
    with pytest.raises(OvssError, match="middle_blocks"):
        build(tiny_clip, tiny_vocabulary, middle_blocks=blocks)


@pytest.mark.parametrize("size", [(30, 41), (1, 9), (1, 1)])
def test_the_closing_is_opencvs(size):
    labels = np.random.RandomState(3).randint(0, 200, size).astype(np.uint8)
    expected = cv2.morphologyEx(labels, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    found = closed(torch.from_numpy(labels).long())
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("background", [0, 2, None])
def test_texts_are_mixed_into_the_queries_of_foreground_classes(background, tiny_clip):
    group = [0, 1, 1, 2, -1, 3]
    vocabulary = ob.Vocabulary.from_features(query_features(5, 6), group, background=background)
    segmentor = build(tiny_clip, vocabulary, def_coefficient=0.3, threshold=0.0)
    auxiliary = query_features(6, 4 - (background is not None))
    found = segmentor.mix_texts(segmentor.text, auxiliary)
    foreground = [c for c in range(4) if c != background]
    for query, c in enumerate(group):
        name = segmentor.text[query]
        expected = 0.7 * name + 0.3 * auxiliary[foreground.index(c)] if c in foreground else name
        torch.testing.assert_close(found[query], expected)


def test_a_file_of_texts_is_encoded_in_the_templates_of_the_names(tmp_path):
    clip = ob.load_clip("demo")
    file = tmp_path / "texts.txt"
    file.write_text("# a comment\nred >=a plain red cloth\nblue >=a striped >= blue cloth\n")
    vocabulary = ob.Vocabulary.from_names(["sand", "red", "blue"], background=True, templates="photo")
    segmentor = build(clip, vocabulary, texts=str(file), def_coefficient=0.4, middle_blocks=(4, 5))
    names, texts = (
        ob.Vocabulary.from_names(names, templates="photo").features(clip)
        for names in (["sand", "red", "blue"], ["a plain red cloth", "a striped >= blue cloth"])
    )
    expected = torch.cat([names[:1], 0.6 * names[1:] + 0.4 * texts])
    torch.testing.assert_close(segmentor.text, expected)
    file.write_text("red >=a cloth\nblue >=" + "very " * 80 + "blue\n")
    with pytest.raises(OvssError, match=r"texts.txt: 'very very.*too long"):
        build(clip, vocabulary, texts=str(file), middle_blocks=(4, 5)).text  # noqa: B018


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a >=b\n", "has 1 texts. Expected 2"),
        ("a >=b\nc\n", "line 2: expected `name >=text`"),
        ("a >=b\nc >= \n", "line 2"),
    ],
)
def test_a_wrong_file_of_texts_names_the_line(content, message, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text(content)
    with pytest.raises(OvssError, match=message):
        read_texts(file, ob.Vocabulary.from_names(["sky", "a", "c"], background=True))


def test_the_texts_of_the_recipes_are_there():
    found = {name: compose_recipe("itaclip", dataset=name).hyperparameters["texts"] for name in config_names("dataset")}
    assert {f"{name}.txt": path for name, path in found.items() if path} == {file.name: str(file) for file in TEXTS}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_texts_name_the_classes_in_order_and_follow_the_instruction(file):
    names = ob.vocabulary.read_names(CONFIGS / "names" / file.stem / "itaclip.txt")[0]
    background = file.stem in ("voc21", "context60", "coco_object")
    vocabulary = ob.Vocabulary.from_names(names, background=background)
    texts = read_texts(file, vocabulary)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    queries = [set(entry) for entry in names[background:]]
    aliases = {"boat": "ship"}
    for line, text, known in zip(lines, texts, queries, strict=True):
        name = line.partition(" >=")[0]
        assert {name, aliases.get(name), name.replace("motorbike", "motorcycle")} & known, line
        words = len(text.split())
        assert words == 1 if file.stem in ("coco_object", "cityscapes") else 3 < words <= 50, line
