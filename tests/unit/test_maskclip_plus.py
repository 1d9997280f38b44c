"""MaskCLIP+: the DeepLabs against plain convolutions, checkpoints in the official layout, the classifier."""

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.encoders.resnet_aspp import load_deeplab
from parity.seeded import query_features, rgb_image
from trained_networks import deeplab_state

HEAD = "decode_head.decode_module"
BLOCKS = (1, 2, 3, 2)


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    def to_file(state):
        path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
        torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": state}, path)
        return str(path)

    return to_file


@pytest.fixture(scope="module")
def states():
    return {version: deeplab_state(blocks=BLOCKS, version=version) for version in (2, 3)}


@pytest.fixture
def build(tiny_clip):
    def make(path, classes=5, background=False, name="maskclip_plus", **options):
        vocabulary = ob.Vocabulary.from_features(query_features(31, classes), background=background)
        return ob.build_segmentor(
            name, clip=tiny_clip, vocabulary=vocabulary, checkpoint=path, **({"short_side": 64} | options)
        )

    return make


def conv(s, name, norm, x, dilation=1, stride=1, groups=1):
    """A convolution that keeps the size but for its stride, and batch normalisation by its running statistics."""
    weight = s[f"{name}.weight"]
    x = F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, groups)
    mean, variance, scale, shift = (s[f"{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt() * scale.view(shape) + shift.view(shape)


def module(s, name, x, **options):
    return conv(s, f"{name}.conv", f"{name}.bn", x, **options).relu()


def separable(s, name, x, dilation=1):
    x = module(s, f"{name}.depthwise_conv", x, dilation=dilation, groups=x.shape[1])
    return module(s, f"{name}.pointwise_conv", x)


def plain_backbone(s, x):
    for i, stride in ((0, 2), (3, 1), (6, 1)):
        x = conv(s, f"backbone.stem.{i}", f"backbone.stem.{i + 1}", x, stride=stride).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    outputs = []
    for stage, (count, stride, dilation, first) in enumerate(
        zip(BLOCKS, (1, 2, 1, 1), (1, 1, 2, 4), (1, 1, 1, 2), strict=True)
    ):
        for i in range(count):
            block, step = f"backbone.layer{stage + 1}.{i}", stride if i == 0 else 1
            y = conv(s, f"{block}.conv1", f"{block}.bn1", x).relu()
            y = conv(s, f"{block}.conv2", f"{block}.bn2", y, dilation if i else first, step).relu()
            y = conv(s, f"{block}.conv3", f"{block}.bn3", y)
            skip = conv(s, f"{block}.downsample.0", f"{block}.downsample.1", x, stride=step) if i == 0 else x
            x = (y + skip).relu()
        outputs.append(x)
    return outputs


def plain_features(s, version, pixels):
    first, _, _, last = plain_backbone(s, pixels)
    if version == 2:
        return sum(module(s, f"{HEAD}.aspp_modules.{i}", last, dilation=d) for i, d in enumerate((6, 12, 18, 24)))
    mean = module(s, f"{HEAD}.image_pool.1", last.mean((2, 3), keepdim=True)).expand(-1, -1, *last.shape[2:])
    branches = [mean, module(s, f"{HEAD}.aspp_modules.0", last)]
    branches += [separable(s, f"{HEAD}.aspp_modules.{i}", last, d) for i, d in ((1, 12), (2, 24), (3, 36))]
    x = module(s, f"{HEAD}.bottleneck", torch.cat(branches, 1))
    x = F.interpolate(x, first.shape[2:], mode="bilinear", align_corners=False)
    x = torch.cat([x, module(s, f"{HEAD}.c1_bottleneck", first)], 1)
    return separable(s, f"{HEAD}.sep_bottleneck.1", separable(s, f"{HEAD}.sep_bottleneck.0", x))


@pytest.mark.parametrize("version", [2, 3])
def test_the_network_is_the_plain_computation(version, states, save):
    network = load_deeplab(save(states[version]))
    pixels = torch.randn(2, 3, 75, 102, generator=torch.Generator().manual_seed(3))
    found, expected = network(pixels), plain_features(states[version], version, pixels)
    assert found.shape[2:] == ((10, 13) if version == 2 else (19, 26))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-2


@pytest.mark.parametrize("blocks", [(3, 4, 6, 3), (3, 4, 23, 3)], ids=["ResNet-50", "ResNet-101"])
def test_the_depth_is_that_of_the_checkpoint(blocks, save):
    network = load_deeplab(save(deeplab_state(blocks=blocks, width=2, stem=1, joint=4)))
    assert tuple(len(getattr(network.backbone, f"layer{i}")) for i in (1, 2, 3, 4)) == blocks


@pytest.mark.parametrize("background", [False, True])
def test_scores_are_plain_products_with_the_texts_of_the_checkpoint(background, states, save, build):
    state = deeplab_state(classes=5 - background, background=background, blocks=BLOCKS)
    segmentor, image = build(save(state), background=background), rgb_image(61, 90, 120)
    pixels = ob.make_context(image, segmentor).pixels[None]
    texts = state["decode_head.text_embeddings"]
    if background:
        learned = state["decode_head.bg_embeddings"]
        texts = torch.cat([learned / learned.norm(), texts])
    scores = F.conv2d(plain_features(state, 2, pixels), texts[:, :, None, None])
    for size in (pixels.shape[2:], image.shape[:2]):
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
    found = ob.segment(segmentor, image)
    torch.testing.assert_close(found.scores, scores[0], rtol=1e-4, atol=1e-4)
    assert (found.label_map == scores[0].argmax(0)).float().mean() > 0.999
    assert len(found.label_map.unique()) > 1


def test_other_classes_are_scored_with_texts_of_clip(states, save, build, tiny_clip):
    path, image = save(states[2]), rgb_image(61, 90, 120)
    vocabulary = ob.Vocabulary.from_features(query_features(32, 5), [0, 1, 1, 2, -1])
    options = {"clip": tiny_clip, "checkpoint": path, "own_texts": False, "short_side": 64}
    segmentor = ob.build_segmentor("maskclip_plus", vocabulary=vocabulary, **options)
    features = plain_features(states[2], 2, ob.make_context(image, segmentor).pixels[None])
    scores = torch.einsum("qd,bdhw->bqhw", query_features(32, 5), features)
    for size in (ob.make_context(image, segmentor).pixels.shape[1:], image.shape[:2]):
        scores = F.interpolate(scores, size, mode="bilinear")
    expected = torch.stack([scores[0, 0], scores[0, 1:3].amax(0), scores[0, 3]])
    torch.testing.assert_close(ob.segment(segmentor, image).scores, expected, rtol=1e-4, atol=1e-4)


def test_a_learned_background_replaces_that_of_the_texts(save, build):
    state = deeplab_state(background=True)
    segmentor = build(save(state), classes=3, background=True, own_texts=False)
    weights, classes = segmentor.classifier()
    assert classes == [0, 1, 2]
    torch.testing.assert_close(weights[0], F.normalize(state["decode_head.bg_embeddings"][0], dim=0))
    torch.testing.assert_close(weights[1:], query_features(31, 3)[1:])


def test_both_names_are_one_method(states, save, build):
    path, image = save(states[2]), rgb_image(61, 70, 90)
    one, other = (ob.segment(build(path, name=name), image) for name in ("maskclip_plus", "denseclip"))
    assert torch.equal(one.scores, other.scores)
    recipes = [ob.compose_recipe(name, dataset="context59").values() for name in ("maskclip_plus", "denseclip")]
    assert recipes[0] == recipes[1]


@pytest.mark.parametrize("teacher", ["vit", "resnet"])
@pytest.mark.parametrize("version", [2, 3])
def test_weights_in_the_official_layout_come_back(version, teacher, save):
    state = deeplab_state(version=version, teacher=teacher, background=True)
    network = load_deeplab(save(state))
    own = network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own if not name.endswith("num_batches_tracked"))
    assert all(name.split(".")[1] in ("clip", "proj", "q_proj", "k_proj", "v_proj", "c_proj", "_iter_counter")
               for name in state.keys() - own.keys())  # fmt: skip
    assert not any(part.training for part in network.modules())


REQUIRED = ["backbone.stem.3.weight", "backbone.layer2.0.bn2.running_var", f"{HEAD}.aspp_modules.3.conv.weight"]
REQUIRED += ["decode_head.text_embeddings", "backbone.layer4.0.downsample.1.bias", "backbone.stem.0.weight"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_tensor_is_named(name, states, save):
    with pytest.raises(ob.OvssError, match=name):
        load_deeplab(save({key: tensor for key, tensor in states[2].items() if key != name}))


@pytest.mark.parametrize(
    "name", ["decode_head.conv_seg.weight", "backbone.layer1.0.conv4.weight", "auxiliary_head.conv.weight"]
)
def test_an_unexpected_tensor_is_named(name, states, save):
    with pytest.raises(ob.OvssError, match=name):
        load_deeplab(save(states[2] | {name: torch.zeros(3)}))


@pytest.mark.parametrize("name", [*REQUIRED[:3], f"{HEAD}.aspp_modules.0.bn.bias", "decode_head.text_embeddings"])
def test_a_tensor_of_the_wrong_shape_is_named(name, states, save):
    with pytest.raises(ob.OvssError, match=name):
        load_deeplab(save(states[2] | {name: torch.zeros(5)}))


def test_what_cannot_work_is_refused_at_once(states, save, build):
    with pytest.raises(ob.OvssError, match="checkpoint=FILE"):
        build(None)
    with pytest.raises(ob.OvssError, match=r"5 classes.*vocabulary has 4 classes.*own_texts=false"):
        build(save(states[2]), classes=4)
    with pytest.raises(ob.OvssError, match="has learned a background"):
        build(save(deeplab_state(classes=4, background=True)))
    other = ob.Vocabulary.from_features(query_features(31, 4, 32))
    segmentor = build(save(states[2]), own_texts=False)
    with pytest.raises(ob.OvssError, match=r"64 channels.*32"):
        ob.segment(type(segmentor)(segmentor.clip, other, segmentor.recipe), rgb_image(62, 70, 90))
