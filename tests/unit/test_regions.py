"""Sources of region maps: superpixels, the mask generators of SAM and SAM 2 against a plain one, files, and their making."""

import json
import shutil
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import ovss_bench as ob
from ovss_bench.auxiliary.masks import boxes_of, paint, point_grid
from ovss_bench.auxiliary.regions import INDEX, load_regions, read_regions, write_regions
from ovss_bench.auxiliary.sources import stated
from ovss_bench.datasets.config import alternatives, dataset_config
from ovss_bench.encoders.diffusion import load_diffusion
from ovss_bench.encoders.vision import load_vision
from ovss_bench.errors import OvssError
from ovss_bench.files import CONFIGS, config_names, load_config
from ovss_bench.runs.precompute import index_regions, precompute_regions
from ovss_bench.runs.published import generator as generator_of

SUPERPIXELS = ("felzenszwalb", "slic", "demo")
SHAPES = [(1, 1), (1, 40), (40, 1), (2, 3), (30, 40)]
SIDE = 64  # of the tiny networks' input


@pytest.fixture(scope="module")
def scene():
    """A picture of 40 x 56 pixels with a few clear shapes."""
    y, x = np.mgrid[:40, :56]
    image = np.full((40, 56, 3), (200, 180, 130), np.uint8)
    image[(y - 12) ** 2 + (x - 15) ** 2 < 81] = (40, 70, 190)
    image[20:35, 30:50] = (205, 45, 40)
    return image


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of a tiny SAM and a tiny SAM 2 with random weights, as save_pretrained writes them, by kind."""
    import transformers

    prompts = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 64,
    }
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3],
    }
    pyramid = {
        "backbone_config": hiera,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    }
    parts = {"prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    models = {
        "sam": transformers.SamModel(transformers.SamConfig(vision_config=vision, **parts)),
        "sam2": transformers.Sam2Model(transformers.Sam2Config(vision_config=pyramid, **parts)),
    }
    folders = {}
    for kind, model in models.items():
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.ndim > 1:
                    spread = 2 * parameter[0].numel() ** -0.5
                    parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
    return folders


def generator(networks, kind, **settings):
    name = {"sam": "sam_vith", "sam2": "sam2_hiera_large"}[kind]
    return load_regions(name, weights=str(networks[kind]), **settings)


# Superpixels


@pytest.mark.parametrize("name", SUPERPIXELS)
def test_superpixels_count_from_one_and_leave_nothing_out(name, scene):
    source = load_regions(name)
    regions = source(scene)
    assert (regions.shape, regions.dtype) == ((40, 56), np.int32)
    assert np.array_equal(np.unique(regions), np.arange(regions.max()) + 1)
    assert np.array_equal(source(scene), regions)


def test_superpixels_are_scikit_images_shifted_by_one(scene):
    from skimage.segmentation import felzenszwalb, slic

    own = load_regions("felzenszwalb", scale=50, sigma=1, min_size=20)(scene)
    assert np.array_equal(own, felzenszwalb(scene, scale=50, sigma=1, min_size=20) + 1)
    own = load_regions("slic", n_segments=30, compactness=5, sigma=0)(scene)
    assert np.array_equal(own, slic(scene, n_segments=30, compactness=5, sigma=0, start_label=0) + 1)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", SUPERPIXELS)
def test_superpixels_of_degenerate_images(name, size):
    for value in (0, 255):
        regions = load_regions(name)(np.full((*size, 3), value, np.uint8))
        assert regions.shape == size
        assert regions.min() == 1


def test_the_regions_of_the_demo_keep_its_cloths_apart():
    """Majority labels of few regions are right on most pixels: what configs/regions/demo.yaml was chosen for."""
    dataset, source = ob.load_dataset("demo_tune"), load_regions("demo")
    right = total = regions_in_all = 0
    for sample in dataset.samples[:6]:
        regions, label = source(dataset.image(sample)), dataset.label(sample)
        counts = np.zeros((regions.max() + 1, len(dataset.classes)), int)
        valid = label != dataset.ignore_index
        np.add.at(counts, (regions[valid], label[valid]), 1)
        right, total, regions_in_all = right + counts.max(1).sum(), total + counts.sum(), regions_in_all + regions.max()
    assert right / total > 0.95
    assert regions_in_all < 6 * 15
    assert source.stand_in


# SAM and SAM 2


def plain_generator(source, image):
    """The specification once more, mask by mask: corrclip.md section 4.2 and segment-anything's rules for what it keeps.

    Returns the map, the number of masks before the suppression, and after.
    """
    height, width = image.shape[:2]
    pixels, inside = source.frame(image)
    n, found = source.points_per_side, []
    for row in range(n):
        for column in range(n):
            point = [(column + 0.5) / n * inside[1], (row + 0.5) / n * inside[0]]
            with torch.no_grad():
                out = source.model(
                    pixel_values=pixels,
                    input_points=torch.tensor(point).view(1, 1, 1, 2),
                    multimask_output=source.multimask_output,
                )
            for small, iou in zip(out.pred_masks[0, 0], out.iou_scores[0, 0], strict=True):
                if source.kind == "sam":
                    small = F.interpolate(small[None, None], (SIDE, SIDE), mode="bilinear")[0, 0, : inside[0], : inside[1]]
                logits = F.interpolate(small[None, None], (height, width), mode="bilinear")[0, 0].numpy()
                threshold, offset = source.mask_threshold, source.stability_score_offset
                inner, outer = (logits > threshold + offset).sum(), (logits > threshold - offset).sum()
                unsure = source.pred_iou_thresh > 0 and iou <= source.pred_iou_thresh
                if unsure or outer == 0 or inner / outer < source.stability_score_thresh:
                    continue
                mask = logits > threshold
                ys, xs = np.nonzero(mask)
                found.append((float(iou), mask, (xs.min(), ys.min(), xs.max(), ys.max()) if len(xs) else (0, 0, 0, 0)))
    found.sort(key=lambda item: -item[0])
    kept = []
    for item in found:
        if all(overlap(item[2], other[2]) <= source.box_nms_thresh for other in kept):
            kept.append(item)
    regions = np.zeros((height, width), int)
    for number, (_, mask, _) in enumerate(sorted(kept, key=lambda item: item[1].sum()), 1):
        regions[mask] = number
    return regions, len(found), len(kept)


def overlap(a, b):
    across = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across
    return across / union if union else 0


LOOSE = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.05}


class Blobs(torch.nn.Module):
    """In place of a network: round masks about the points, of sizes and sharpnesses that vary with the place, and a quality."""

    def get_image_embeddings(self, pixels):
        return pixels

    def forward(self, input_points, multimask_output, image_embeddings=None, pixel_values=None):
        points = input_points[0, :, 0]  # (n, 2)
        vary = (points @ torch.tensor([0.7, 1.3])).sin()[:, None] + torch.arange(3 if multimask_output else 1)
        cells = (torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="xy"), -1) + 0.5) * SIDE / 16
        distance = (cells[None] - points[:, None, None]).norm(dim=-1)[:, None]
        radius, sharpness = 9 + 6 * vary.cos(), 0.3 + 0.7 * vary.sin() ** 2
        logits = (radius[..., None, None] - distance) * sharpness[..., None, None]
        return types.SimpleNamespace(pred_masks=logits[None], iou_scores=(0.5 + 0.5 * (3 * vary).sin())[None])


CHANGES = [
    {},
    {"pred_iou_thresh": 0.6},
    {"stability_score_thresh": 0.6},
    {"stability_score_offset": 0.5, "stability_score_thresh": 0.6},
    {"mask_threshold": 0.7},
    {"box_nms_thresh": 0.3},
    {"multimask_output": False},
    {"points_per_batch": 7},
]


@pytest.mark.parametrize("changed", CHANGES, ids=str)
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_filters_suppression_and_painting_agree_with_a_plain_generator(kind, changed, networks, scene):
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2, "box_nms_thresh": 0.5}
    source = generator(networks, kind, **settings | changed)
    source.model = Blobs()
    expected, found, kept = plain_generator(source, scene)
    assert 2 < kept < found
    assert len(np.unique(expected)) > 2
    assert source.masks(scene).shape[0] == kept
    assert (source(scene) == expected).mean() > 0.999


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_networks_agree_with_a_plain_generator(kind, multimask, networks, scene):
    source = generator(networks, kind, **LOOSE, multimask_output=multimask, box_nms_thresh=1.0)
    source.pred_iou_thresh, source.stability_score_offset = -1e9, 0.0  # with these weights both scores are anything
    expected, found, _ = plain_generator(source, scene)
    assert found
    assert (source(scene) == expected).mean() > 0.999


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_inputs_are_those_of_transformers_processors(kind, networks, scene):
    """Within the rounding of pixels to whole grey levels, which the official codes do for SAM alone."""
    import transformers

    source = generator(networks, kind)
    square = {"height": SIDE, "width": SIDE}
    if kind == "sam":
        processor = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)
    else:
        processor = transformers.Sam2ImageProcessor(size=square)
    for image in (scene, scene[:, :17], np.ascontiguousarray(scene.transpose(1, 0, 2))):
        inputs = processor(image, return_tensors="pt")
        pixels, inside = source.frame(image)
        assert (pixels - inputs["pixel_values"]).abs().max() <= 1.01 / 57  # a grey level after the normalisation
        if kind == "sam":
            assert list(inside) == inputs["reshaped_input_sizes"][0].tolist()
        small = torch.linspace(-3, 3, 256).sin().view(1, 1, 16, 16)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        options = {"pad_size": square} if kind == "sam" else {}
        theirs = processor.post_process_masks([small], *sizes, binarize=False, **options)[0]
        assert torch.allclose(source.enlarge(small, inside, image.shape[:2]), theirs, atol=1e-6)


def test_batches_of_points_do_not_matter(networks, scene):
    a, b = (generator(networks, "sam2", **LOOSE, points_per_batch=count)(scene) for count in (3, 64))
    assert (a == b).mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (40, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_generators_on_degenerate_images(kind, size, networks):
    for settings in (LOOSE, {"points_per_side": 2, "stability_score_thresh": 0.0, "pred_iou_thresh": 0.0}):
        regions = generator(networks, kind, **settings)(np.full((*size, 3), 128, np.uint8))
        assert (regions.shape, regions.dtype) == (size, np.int32)
        assert regions.min() >= 0


def test_nothing_found_is_all_zero(networks, scene):
    assert not generator(networks, "sam2", points_per_side=2, pred_iou_thresh=1.0)(scene).any()


@pytest.mark.parametrize(("kind", "precision"), [("sam2", "fp16"), ("sam", "autocast")])
def test_half_precision_stays_close(kind, precision, networks, scene):
    source = generator(networks, kind, **LOOSE)
    exact = source(scene)
    source.half = True
    if precision == "fp16":
        source.model.half()
    assert (source(scene) == exact).mean() > 0.9


def test_an_image_that_does_not_fit_into_memory_is_named(networks, scene, monkeypatch):
    source = generator(networks, "sam2", **LOOSE)

    def full(pixels):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(source.model, "get_image_embeddings", full)
    with pytest.raises(OvssError, match=r"40 x 56 pixels .* settings.points_per_batch=16"):
        source(scene)


def test_sam2_gives_its_single_mask_as_it_is(networks):
    assert generator(networks, "sam2").model.mask_decoder.dynamic_multimask_via_stability is False


def test_the_grid_of_points_goes_row_by_row():
    assert torch.allclose(point_grid(2), torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]))
    assert point_grid(1).tolist() == [[0.5, 0.5]]


def test_boxes_hold_the_last_pixel_and_are_zero_for_nothing():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2:6] = True
    masks[1, 4, 6] = True
    assert boxes_of(masks).tolist() == [[2, 1, 5, 3], [6, 4, 6, 4], [0, 0, 0, 0]]


def test_larger_masks_cover_smaller_ones():
    masks = np.zeros((4, 3, 5), bool)
    masks[0, :, :4] = True  # 12 pixels: last
    masks[1, 0, 3:] = True  # 2 pixels: first of its size
    masks[2, 2, 4] = True  # 1 pixel
    masks[3, 1, 3:] = True  # 2 pixels
    regions = paint(np.packbits(masks.reshape(4, -1), axis=1), (3, 5))
    assert regions.tolist() == [[4, 4, 4, 4, 2], [4, 4, 4, 4, 3], [4, 4, 4, 4, 1]]
    assert paint(np.empty((0, 2), np.uint8), (3, 5)).tolist() == [[0] * 5] * 3


# Names, settings, weights


def test_every_entry_has_all_settings_and_a_source_on_each():
    for name in config_names("regions"):
        config = load_config("regions", name)
        for line in (CONFIGS / "regions" / f"{name}.yaml").read_text().splitlines():
            key = line.partition(":")[0]
            assert line.startswith("#") or key == "kind" or " # " in line, f"{name}: {line}"
        assert config["kind"] in ("felzenszwalb", "slic", "sam", "sam2", "files")


def test_published_settings():
    expected = {
        "sam2_8": (8, False, 0.4, 0.4),
        "sam2_32": (32, True, 0.7, 0.7),
        "sam2_64": (64, False, 0.7, 0.7),
        "sam2_hiera_large": (32, True, 0.8, 0.95),
        "sam_vith": (32, True, 0.88, 0.95),
        "sam_vith_07": (32, True, 0.7, 0.7),
    }
    names = ("points_per_side", "multimask_output", "pred_iou_thresh", "stability_score_thresh")
    common = {"points_per_batch": 64, "stability_score_offset": 1.0, "mask_threshold": 0.0, "box_nms_thresh": 0.7}
    for name, values in expected.items():
        config = load_config("regions", name)
        assert tuple(config[key] for key in names) == values
        assert common.items() <= config.items()


def test_the_precision_of_the_generators_is_that_of_their_codes(networks):
    configs = {name: load_config("regions", name) for name in config_names("regions")}
    precision = {name: config["precision"] for name, config in configs.items() if "precision" in config}
    half = dict.fromkeys(("sam2_8", "sam2_32", "sam2_64"), "fp16")
    assert precision == half | {"sam_vith": "fp32", "sam2_hiera_large": "fp32", "sam_vith_07": "autocast"}
    single, *others = (generator(networks, "sam", precision=value) for value in ("fp32", "fp16", "autocast"))
    for other in others:  # no half precision on a CPU, and the name of what was computed
        assert (other.precision, other.digest, next(other.model.parameters()).dtype) == ("fp32", single.digest, torch.float32)


def test_digests_tell_settings_and_weights_apart(networks, tmp_path):
    names = [load_regions(name).digest for name in SUPERPIXELS]
    assert len({*names, load_regions("felzenszwalb", scale=101).digest}) == 4
    assert load_regions("felzenszwalb", scale=100.0).digest == names[0]
    first = generator(networks, "sam", points_per_side=2).digest
    shutil.copytree(networks["sam"], tmp_path / "copy")
    assert load_regions("sam_vith", weights=str(tmp_path / "copy"), points_per_side=2).digest == first
    assert generator(networks, "sam", points_per_side=2, points_per_batch=3).digest == first
    assert generator(networks, "sam", points_per_side=3).digest != first
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    tensors["mask_decoder.iou_token.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_regions("sam_vith", weights=str(tmp_path / "copy"), points_per_side=2).digest != first


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("felzenswalb", {}, "felzenswalb.*felzenszwalb"),
        ("felzenszwalb", {"scael": 1}, "scael.*scale"),
        ("felzenszwalb", {"scale": -1}, "scale=-1.*at least 0"),
        ("felzenszwalb", {"scale": "big"}, "scale='big'.*number"),
        ("felzenszwalb", {"sigma": float("nan")}, "sigma=nan"),
        ("felzenszwalb", {"min_size": 2.5}, "min_size=2.5.*whole number"),
        ("slic", {"n_segments": 0}, "n_segments=0"),
        ("slic", {"n_segments": True}, "n_segments=True"),
        ("sam2_8", {"multimask_output": 1}, "multimask_output=1.*true or false"),
        ("sam2_8", {"precision": "bf16"}, "precision='bf16'.*fp32 or fp16 or autocast"),
        ("sam2_8", {"device": None, "points_per_side": 0}, "points_per_side=0"),
        ("sam2_8", {"weights": "/nowhere/sam2"}, "/nowhere/sam2.*model.safetensors"),
        ("entityseg", {}, "instance_mask.zip.*tools/regions.py index"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_named(name, settings, message):
    with pytest.raises(OvssError, match=message):
        load_regions(name, **settings)


def test_missing_weights_say_where_they_come_from(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(OvssError, match=r"facebook/sam2-hiera-large are not on this machine.*OVSS_WEIGHTS.*settings.weights="):
        load_regions("sam2_8")


DOWNLOADS = {  # all that comes from huggingface.co
    "regions": lambda: load_regions("sam2_8"),
    "clip": lambda: ob.load_clip("vit_b16_laion2b"),
    "vfm": lambda: load_vision("dinov3_vitb16", feature="tokens"),
    "diffusion": lambda: load_diffusion("sd21_base"),
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_server_that_cannot_be_reached_is_one_error_without_retries(kind, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(OvssError, match="not on this machine and could not be downloaded"):
        DOWNLOADS[kind]()
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("make", [lambda path: load_regions(path), lambda path: ob.load_clip("vit_b16", pretrained=path)])
def test_paths_that_do_not_exist_are_not_taken_for_names(make):
    with pytest.raises(OvssError, match=r"/nope.* (do|does) not exist") as error:
        make("/nope")
    assert "Did you mean" not in str(error.value)


def test_weights_are_found_below_the_folder_of_weights(monkeypatch, networks, tmp_path, scene):
    shutil.copytree(networks["sam2"], tmp_path / "sam2-hiera-large")
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    assert load_regions("sam2_8")(scene).shape == (40, 56)


def test_weights_of_another_network_are_refused(networks, tmp_path):
    with pytest.raises(OvssError, match="is no folder with weights for Sam2Model"):
        load_regions("sam2_8", weights=str(networks["sam"]))
    shutil.copytree(networks["sam2"], tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    tensors = load_file(file)
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(OvssError, match=r"1 tensors are missing .*mask_decoder.iou_token.weight"):
        load_regions("sam2_8", weights=str(tmp_path / "cut"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OvssError, match="cut is no folder with weights"):
        load_regions("sam2_8", weights=str(tmp_path / "cut"))


# Files


@pytest.fixture(scope="module")
def dataset(voc):
    return ob.load_dataset("voc21", voc)


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory):
    """A folder of the regions of all images, not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    precompute_regions(dataset, "demo", folder, quiet=True)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_gives_what_made_it_gives(made, dataset):
    source, again = load_regions("demo"), load_regions(made)
    for sample in dataset.samples:
        image = dataset.image(sample)
        assert np.array_equal(again(image), source(image))
        with np.load(made / f"{sample.id}.npz") as file:
            assert np.array_equal(file["instance_mask"], source(image))
    assert again.digest == source.digest
    assert again.stand_in
    assert len(list(made.glob("*.npz"))) == 10


def test_a_folder_is_a_source_of_a_segmentor(made, dataset):
    """By name, as a recipe has it."""
    from ovss_bench.auxiliary.sources import named_source

    image = dataset.image(dataset.samples[0])
    source = named_source("regions", str(made), None, "fp32", "cpu")
    assert np.array_equal(source(image), load_regions("demo")(image))


def test_a_missing_image_names_the_folder_and_the_command(made, scene):
    with pytest.raises(
        OvssError, match=rf"{made} has no regions for this image of 40 x 56.*regions.py dataset=voc21 regions=demo"
    ):
        load_regions(made)(scene)
    with pytest.raises(OvssError, match="made already: leave scale out"):
        load_regions(made, scale=3)


def test_a_second_run_goes_on_where_the_first_stopped(dataset, folder, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    names = sorted(before)
    (folder / names[0]).unlink()
    index = json.loads((folder / INDEX).read_text())
    index["images"] = {key: file for key, file in index["images"].items() if file != names[1]}  # killed before it was noted
    (folder / INDEX).write_text(json.dumps(index))
    precompute_regions(dataset, "demo", folder, quiet=True)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert [name for name in names if after[name] != before[name]] == names[:2]
    assert len(json.loads((folder / INDEX).read_text())["images"]) == 10


def test_other_regions_never_mix_in(dataset, folder, scene):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OvssError, match=r"scale is 3000.0 there and 100.0 here.*out=DIR"):
        precompute_regions(dataset, "demo", folder, settings={"scale": 100}, quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / INDEX).unlink()
    with pytest.raises(OvssError, match=r"\.npz, but no regions.json.*index"):
        precompute_regions(dataset, "demo", folder, quiet=True)


def test_an_image_that_was_changed_is_named(folder, voc, tmp_path):
    shutil.copytree(voc, tmp_path / "VOC")
    (first, *_) = sorted((tmp_path / "VOC").rglob("*.jpg"))
    Image.new("RGB", (50, 40)).save(first)
    changed = ob.load_dataset("voc21", tmp_path / "VOC")
    with pytest.raises(OvssError, match=rf"1 images have no regions.*\n  {first.stem}: .*another image of that name"):
        precompute_regions(changed, "demo", folder, quiet=True)
    (folder / f"{first.stem}.npz").unlink()
    precompute_regions(changed, "demo", folder, quiet=True)
    assert load_regions(folder)(np.zeros((40, 50, 3), np.uint8)).max() == 1
    assert len(load_regions(folder).files) == 10


def test_bad_images_are_listed_and_the_others_made(voc, tmp_path):
    shutil.copytree(voc, tmp_path / "VOC")
    bad = sorted((tmp_path / "VOC").rglob("*.jpg"))[3]
    bad.write_bytes(b"nothing")
    broken = ob.load_dataset("voc21", tmp_path / "VOC")
    with pytest.raises(OvssError, match=rf"1 images have no regions; .*\n  {bad.stem}: image .* cannot"):
        precompute_regions(broken, "demo", tmp_path / "out", quiet=True)
    assert len(load_regions(tmp_path / "out").files) == 9


def test_two_processes_do_not_write_to_one_folder(dataset, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OvssError, match="another process is writing"):
            precompute_regions(dataset, "demo", tmp_path / "out", quiet=True)


def test_files_from_elsewhere_are_indexed(dataset, tmp_path):
    """PNG and npz of every depth, values kept: -1 for unsegmented, palette indices, more than 8 bits."""
    samples, maps = dataset.samples, {}
    types = [np.uint8, np.uint16, np.int64, np.float32]
    for number, sample in enumerate(samples):
        size = dataset.image(sample).shape[:2]
        values = np.arange(size[0] * size[1]).reshape(size) % (250 if number % 4 == 0 else 1000)
        maps[sample.id] = values - (number % 4 == 2)
        if number % 4 < 2:
            Image.fromarray(values.astype(types[number % 4])).save(tmp_path / f"{sample.id}.png")
        else:
            np.savez(tmp_path / f"{sample.id}.npz", instance_mask=maps[sample.id].astype(types[number % 4]))
    with pytest.raises(OvssError, match=rf"{tmp_path} has no regions.json.*regions.py index {tmp_path} dataset=NAME"):
        load_regions(tmp_path)
    index_regions(dataset, tmp_path, quiet=True)
    source = load_regions(tmp_path)
    for sample in samples:
        assert np.array_equal(source(dataset.image(sample)), maps[sample.id])
    assert not source.stand_in
    write_regions(tmp_path / f"{samples[2].id}.npz", maps[samples[2].id] + 1)
    index_regions(dataset, tmp_path, quiet=True)
    assert load_regions(tmp_path).digest != source.digest
    with pytest.raises(OvssError, match="files that came from elsewhere"):
        precompute_regions(dataset, "demo", tmp_path, quiet=True)


def test_an_index_names_what_is_missing_or_turned(dataset, folder):
    (folder / INDEX).unlink()
    first, second, third = (sample.id for sample in dataset.samples[:3])
    (folder / f"{first}.npz").unlink()
    write_regions(folder / f"{second}.npz", read_regions(folder / f"{second}.npz").T)
    (folder / f"{third}.npz").write_bytes(b"PK no zip")
    with pytest.raises(OvssError, match="3 images are not in the index; 7 are") as error:
        index_regions(dataset, folder, quiet=True)
    lines = str(error.value).splitlines()[1:]
    assert f"{first}: there is no {first}.npz or {first}.png in {folder}" in lines[0]
    assert "EXIF" in lines[1]
    assert "cannot be read" in lines[2]
    assert len(load_regions(folder).files) == 7


def test_the_index_of_made_regions_can_be_made_again(dataset, made, folder):
    """As when another version of a decoder reads other pixels."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"images": {}}))
    index_regions(dataset, folder, quiet=True)
    assert json.loads((folder / INDEX).read_text()) == index | {"generator": None}
    (folder / INDEX).write_text("{")
    with pytest.raises(OvssError, match=r"regions.json is damaged.*index"):
        load_regions(folder)


# Whose maps a folder holds


def suffixed():
    """The data sets whose images have more than an extension behind their id."""
    configs = {name: dataset_config(name)[1] for name in config_names("dataset")}
    suffixes = {name: alternatives(config.get("image_suffix", ".x")) for name, config in configs.items()}
    return {name: configs[name] for name, (first, *_) in suffixes.items() if not first.startswith(".")}


@pytest.mark.parametrize("name", suffixed())
@pytest.mark.parametrize("form", ["id", "last part of the id", "id without folders", "stem", "stem with its folder"])
def test_maps_are_found_under_every_name_that_others_give_them(name, form, tmp_path):
    """CorrCLIP's are called as the image without its extension: frankfurt_000000_000294_leftImg8bit.npz."""
    config, ids = suffixed()[name], ("frankfurt/frankfurt_1", "lindau/lindau_1")
    root = tmp_path / "data" / config["folders"][0]
    for number, id in enumerate(ids, 1):
        for kind in ("image", "label"):
            path = root / config[f"{kind}s"] / f"{id}{config[f'{kind}_suffix']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "image" else "L", (8, 6), number).save(path)
    if config.get("ids"):
        (root / config["ids"]).parent.mkdir(parents=True, exist_ok=True)
        (root / config["ids"]).write_text("\n".join(ids))
    dataset = ob.load_dataset(name, tmp_path / "data")
    for number, sample in enumerate(dataset.samples):
        stem = sample.image_path.stem
        names = {
            "id": sample.id,
            "last part of the id": sample.id.rpartition("/")[2],
            "id without folders": sample.id.replace("/", "_"),
            "stem": stem,
            "stem with its folder": f"{sample.id.partition('/')[0]}/{stem}",
        }
        write_regions(tmp_path / "maps" / f"{names[form]}.npz", np.full((6, 8), number + 5))
    index_regions(dataset, tmp_path / "maps", quiet=True)
    maps = load_regions(tmp_path / "maps")
    assert [int(maps(dataset.image(sample)).max()) for sample in dataset.samples] == [5, 6]


def test_more_than_one_data_set_has_such_suffixes():
    assert {"cityscapes", "dark_zurich", "cwfid"} <= set(suffixed())


def test_a_name_of_two_images_is_nobodys(tmp_path):
    for folder in ("a", "b"):
        for kind in ("images", "labels"):
            (tmp_path / kind / folder).mkdir(parents=True)
            Image.new("RGB" if kind == "images" else "L", (8, 6), ord(folder)).save(tmp_path / kind / folder / "1.png")
    (tmp_path / "own.yaml").write_text(
        "images: images\nlabels: labels\nimage_suffix: .png\nlabel_suffix: .png\nclasses: [x, y]\n"
    )
    dataset = ob.load_dataset(str(tmp_path / "own.yaml"))
    write_regions(tmp_path / "maps" / "1.npz", np.ones((6, 8)))
    with pytest.raises(OvssError, match=r"(?s)2 images are not in the index; 0 are.*there is no a/1.npz"):
        index_regions(dataset, tmp_path / "maps", quiet=True)


def test_a_folder_knows_its_generator(dataset, made, folder):
    assert load_regions(made).generator == "demo"
    precompute_regions(dataset, "demo", folder.with_name("other"), settings={"scale": 100}, limit=1, quiet=True)
    assert load_regions(folder.with_name("other")).generator is None
    with pytest.raises(OvssError, match=r"were made here, by demo. Leave regions=sam2_32 out"):
        index_regions(dataset, folder, generator="sam2_32", quiet=True)
    (folder / INDEX).unlink()
    index_regions(dataset, folder, quiet=True)
    assert load_regions(folder).generator is None
    index_regions(dataset, folder, generator="sam2_32", quiet=True)
    index_regions(dataset, folder, quiet=True)  # once said, it stays
    assert (load_regions(folder).generator, load_regions(folder).unconfirmed) == ("sam2_32", None)
    with pytest.raises(OvssError, match=r"unknown regions 'sam2_23'.*sam2_32"):
        index_regions(dataset, folder, generator="sam2_23", quiet=True)
    index = json.loads((folder / INDEX).read_text())
    entry = load_config("regions", "sam2_32")
    (folder / INDEX).write_text(json.dumps(index | {"regions": "sam2_32", "settings": entry | {"weights": "elsewhere"}}))
    assert load_regions(folder).generator == "sam2_32"
    assert "0.4" in load_regions(folder).unconfirmed


def test_a_result_says_whose_maps_it_had(dataset, folder, tmp_path):
    """And one that was written before finds it in an index that says so by now."""
    (folder / INDEX).unlink()
    index_regions(dataset, folder, quiet=True)
    source = stated(str(folder), load_regions(folder))
    assert set(source) == {"name", "digest", "stand_in"}
    assert generator_of(source) is None
    index_regions(dataset, folder, generator="entityseg", quiet=True)
    assert generator_of(source) == "entityseg"
    assert generator_of(source | {"digest": "0" * 64}) is None
    assert stated(str(folder), load_regions(folder)) == source | {"generator": "entityseg"}


def test_maps_of_a_generator_that_is_in_no_library_are_found_by_its_name(dataset, made, monkeypatch, tmp_path):
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    with pytest.raises(OvssError, match=r"into the folder entityseg of .*OVSS_WEIGHTS .*regions.py index FOLDER .*=entityseg"):
        load_regions("entityseg")
    halves = dataset.samples[:5], dataset.samples[5:]
    for name, samples in zip(("voc", "context"), halves, strict=True):
        (tmp_path / "entityseg" / name).mkdir(parents=True)
        for sample in samples:
            shutil.copy(made / f"{sample.id}.npz", tmp_path / "entityseg" / name)
        with pytest.raises(OvssError, match="5 images are not in the index; 5 are"):
            index_regions(dataset, tmp_path / "entityseg" / name, generator="entityseg", quiet=True)
    maps, own = load_regions("entityseg"), load_regions("demo")
    assert (maps.generator, maps.stand_in, len(maps.files)) == ("entityseg", False, 10)
    for sample in (halves[0][0], halves[1][0]):
        assert np.array_equal(maps(dataset.image(sample)), own(dataset.image(sample)))
    with pytest.raises(OvssError, match="come in files and have no settings: leave scale out"):
        load_regions("entityseg", scale=3)
    with pytest.raises(OvssError, match="there is nothing to make"):
        precompute_regions(dataset, "entityseg", tmp_path / "out", quiet=True)
    index = json.loads((tmp_path / "entityseg" / "voc" / INDEX).read_text())
    (tmp_path / "entityseg" / "voc" / INDEX).write_text(json.dumps(index | {"generator": None}))
    with pytest.raises(OvssError, match="are not all indexed as those of entityseg"):
        load_regions("entityseg")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), "shape"),
        (np.full((4, 5), 0.5), "whole numbers"),
        (np.full((4, 5), np.nan), "whole numbers"),
        (np.zeros((4, 5), "U1"), "whole numbers"),
        (np.zeros((5, 4), np.uint8), "5 x 4 pixels.*its image 4 x 5.*EXIF"),
    ],
)
def test_bad_region_files_are_refused(array, message, tmp_path):
    np.savez(tmp_path / "map.npz", instance_mask=array)
    with pytest.raises(OvssError, match=message):
        read_regions(tmp_path / "map.npz", (4, 5))


def test_files_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "map.npz", instance_mask=np.array([[{}]], dtype=object))
    with pytest.raises(OvssError, match="cannot be read"):
        read_regions(tmp_path / "map.npz")
    np.savez(tmp_path / "map.npz", other=np.zeros((2, 2)))
    with pytest.raises(OvssError, match="instance_mask"):
        read_regions(tmp_path / "map.npz")


@pytest.mark.parametrize(
    ("low", "high", "type"),
    [(0, 255, np.uint8), (0, 256, np.uint16), (-1, 3, np.int32), (0, 70000, np.int32)],
)
def test_files_are_small(low, high, type, tmp_path):
    regions = np.array([[low, high]], np.int32)
    write_regions(tmp_path / "map.npz", regions)
    with np.load(tmp_path / "map.npz") as file:
        assert file["instance_mask"].dtype == type
    assert np.array_equal(read_regions(tmp_path / "map.npz"), regions)
