"""Sources of region maps: superpixels; names, settings and weights of the mask generators."""

import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import ovss_bench as ob
from ovss_bench.auxiliary.regions import load_regions
from ovss_bench.encoders.diffusion import load_diffusion
from ovss_bench.encoders.vision import load_vision
from ovss_bench.errors import OvssError
from ovss_bench.files import CONFIGS, config_names, load_config
from tiny_networks import generator

SUPERPIXELS = ("felzenszwalb", "slic", "demo")
SHAPES = [(1, 1), (1, 40), (40, 1), (2, 3), (30, 40)]


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
        ("felzenszwalb", {"scale": -1}, "scale=-1.*regions 'felzenszwalb'.*0 or more"),
        ("felzenszwalb", {"scale": "big"}, "scale='big'.*number"),
        ("felzenszwalb", {"sigma": float("nan")}, "sigma=nan"),
        ("felzenszwalb", {"min_size": 2.5}, "min_size=2.5.*whole number"),
        ("slic", {"n_segments": 0}, "n_segments=0"),
        ("slic", {"n_segments": True}, "n_segments=True"),
        ("sam2_8", {"multimask_output": 1}, "multimask_output=1.*true or false"),
        ("sam2_8", {"precision": "bf16"}, "precision.*regions 'sam2_8'.*'bf16'.*autocast, fp16, fp32"),
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
    with pytest.raises(OvssError, match="is not a folder with weights of Sam2Model"):
        load_regions("sam2_8", weights=str(networks["sam"]))
    shutil.copytree(networks["sam2"], tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    tensors = load_file(file)
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(OvssError, match=r"1 tensors of Sam2Model are missing .*mask_decoder.iou_token.weight"):
        load_regions("sam2_8", weights=str(tmp_path / "cut"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OvssError, match="cut is not a folder with weights"):
        load_regions("sam2_8", weights=str(tmp_path / "cut"))
