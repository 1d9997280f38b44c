"""Every method on the shadow GPU, in all precisions: no tensor is left on the CPU, all dtypes are those of CUDA, and the label
maps are those of the CPU."""

import functools

import pytest
import torch

import ovss_bench as ob
from device.methods import FINE, PRECISIONS, STEPPED, branches, build, equal, images, predictions, same
from device.shadow import CUDA, REAL, shadow_gpu
from ovss_bench.bench.stand_ins import given_experts
from ovss_bench.inference.engine import predict
from ovss_bench.inference.trunk_cache import TrunkCache
from ovss_bench.segmentors.hooks import HOOKS
from ovss_bench.segmentors.steps.floss import FLOSS
from parity.seeded import query_features
from stand_ins import METHODS, ON_CLIP
from tiny_networks import loaded, vit

IMAGES = images((96, 120), (80, 150))  # 6 and 8 windows, in batches of 4
SMALLER = images((80, 80))
LABELS = {"decide", "correct"}
INSIDE = {"mix", "last_block"}  # what they return has the dtype of CLIP's weights


@pytest.fixture
def watched(monkeypatch):
    """`watched(segmentor)`: the hooks that run, each of which must return a tensor on the GPU of the right dtype."""

    def watch(segmentor):
        ran = set()
        for hook in HOOKS.keys() - {"group_features", "prior"}:
            if getattr(type(segmentor), hook, None):
                setattr(segmentor, hook, checked(segmentor, hook, getattr(segmentor, hook), ran))
        return ran

    def checked(segmentor, hook, method, ran):
        @functools.wraps(method)
        def call(*arguments):
            result = method(*arguments)
            dtype = torch.int64 if hook in LABELS else segmentor.clip.dtype if hook in INSIDE else torch.float32
            assert (result.device, result.dtype) == (CUDA, dtype), hook
            ran.add(hook)
            return result

        return call

    return watch


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_labels_of_the_cpu(name, precision, clips, watched, monkeypatch):
    on_cpu, on_gpu = clips[precision]
    pictures = IMAGES if precision == "fp32" else SMALLER
    # What follows a network without CLIP computes in fp32.
    runs = branches(name) if precision == "fp32" or name in ON_CLIP else [{}]
    for number, values in enumerate(runs):
        options = {"keep_scores": number % 2 == 1}
        with shadow_gpu(monkeypatch):
            segmentor = build(name, on_gpu, **values)
            ran = watched(segmentor)
            found = predictions(segmentor, pictures, **options)
        own_labels = type(segmentor).image_labels is not ob.Segmentor.image_labels  # which is no hook
        at_once = own_labels and not options["keep_scores"]
        assert at_once or ran & {"patch_logits", "image_logits", "image_scores"}, "no hook has run"
        expected = predictions(build(name, on_cpu, **values), pictures, **options)
        assert equal(found, expected, FINE.get(name, 0)), values
        for prediction in found.values():
            assert type(prediction.label_map) is torch.Tensor
            assert prediction.label_map.dtype == torch.int64


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STEPPED)
def test_a_step_gives_the_labels_of_the_cpu(name, precision, clips, watched, monkeypatch):
    on_cpu, on_gpu = clips[precision]
    monkeypatch.setattr(FLOSS, "classifiers", given_experts)
    with shadow_gpu(monkeypatch):
        segmentor = build(name, on_gpu)
        watched(segmentor)
        found = predictions(segmentor, SMALLER)
    assert equal(found, predictions(build(name, on_cpu), SMALLER))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_methods_share_a_run(precision, clips, gpu):
    clip = clips[precision][1]
    segmentors = [build(name, clip) for name in ON_CLIP] + [build("sclip", clip, threshold=0.3)]
    segmentors = [one for one in segmentors if one.recipe.trunk_key == segmentors[-1].recipe.trunk_key]
    assert len(segmentors) > 2
    alone = [predictions(segmentor, SMALLER) for segmentor in segmentors]
    ((key, together),) = predict(segmentors, SMALLER.items(), batch=4)
    assert all(same(one.label_map, other[key].label_map) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", ["clip", "gem", "scclip", "corrclip"])
def test_tokens_travel_through_the_trunk_cache(name, clips, gpu, tmp_path):
    cache = TrunkCache(tmp_path, 1e9)
    segmentor = build(name, clips["fp16"][1])
    first = predictions(segmentor, IMAGES, trunk_cache=cache)
    assert list(tmp_path.rglob("*.safetensors"))
    assert equal(first, predictions(segmentor, IMAGES, trunk_cache=cache))
    assert equal(first, predictions(segmentor, IMAGES))


def dinov3():
    import timm

    return timm.create_model("vit_small_patch16_dinov3_qkvb", embed_dim=32, depth=3, num_heads=2, num_classes=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", [vit, dinov3])
@pytest.mark.parametrize("feature", ["tokens", "q+k"])
def test_vision_encoders(network, feature, precision, clips, monkeypatch):
    state = network().state_dict()
    maps = []
    for side, device in enumerate(("cpu", "cuda")):
        with shadow_gpu(monkeypatch):
            encoder = loaded(state, feature=feature, precision=precision, device=device)
            maps.append(predictions(build("proxyclip", clips[precision][side], vfm=encoder), SMALLER))
    assert equal(*maps)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_regions_are_retrieved_from_a_bank(precision, clips, gpu):
    keys, values, aux = (query_features(seed, 30, width) for seed, width in ((5, 12), (6, 32), (7, 16)))
    bank = ob.RegionBank(keys.cuda(), values.cuda(), aux.cuda(), query_features(8, 8, 16).cuda())
    host = ob.RegionBank(keys, values, aux, query_features(8, 8, 16))
    on_cpu, on_gpu = clips[precision]
    found = predictions(build("corrclip_v2", on_gpu, bank=bank), SMALLER, keep_scores=True)
    expected = predictions(build("corrclip_v2", on_cpu, bank=host), SMALLER, keep_scores=True)
    assert equal(found, expected, FINE["corrclip_v2"])


def test_texts_are_encoded(gpu):
    prompts = ["a photo of a cat.", "sky", "a drawing of two dogs on a green sofa"]
    on_cpu, on_gpu = (ob.load_clip("demo", device=device, precision="fp32").encode_text(prompts) for device in ("cpu", "cuda"))
    assert on_gpu.device == CUDA
    assert torch.allclose(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-4 if REAL else 0)


def test_an_evaluation(gpu):
    data = ob.load_dataset("demo")
    recipe = {"resize": "none", "window": 48, "stride": 48}
    scores = [
        ob.evaluate("naclip", ob.load_clip("demo", device=device, precision="fp32"), data, recipe=recipe, limit=1).metrics
        for device in ("cpu", "cuda")
    ]
    close = REAL and scores[0]["mIoU"] == pytest.approx(scores[1]["mIoU"], abs=0.5)
    assert close or scores[0] == scores[1]
