"""TagCLIP and ZegCLIP: each step against a plain computation, checkpoints in the official layout, the split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ovss_bench as ob
from ovss_bench.encoders.prompted_vit import load_prompted
from parity.seeded import clip_state_dict, query_features, rgb_image
from trained_networks import tagclip_state

CLIP = {"width": 64, "layers": 3, "resolution": 64, "vocab_size": 50}
SMALL = {"short_side": 80, "window": 64, "stride": 48}
NAMES = ("cat", "dog", "sea", "sky", "old tree")


@pytest.fixture(scope="module")
def states():
    return {layout: tagclip_state(clip_state_dict(15, **CLIP), 4, 48, layout) for layout in ("tagclip", "zegclip")}


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    def to_file(state, wrapper="state_dict"):
        path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
        torch.save({wrapper: state} if wrapper else state, path)
        return str(path)

    return to_file


@pytest.fixture(scope="module")
def files(states, save):
    return {layout: save(state) for layout, state in states.items()}


@pytest.fixture(scope="module")
def vocabulary():
    return ob.Vocabulary.from_names(NAMES, templates="none")


@pytest.fixture
def build(files, tiny_clip, vocabulary):
    def make(name="tagclip", vocabulary=vocabulary, **options):
        layout = "zegclip" if name == "zegclip" else "tagclip"
        own = {"templates": vocabulary.templates, "checkpoint": files[layout]} | SMALL
        return ob.build_segmentor(name, clip=tiny_clip, vocabulary=vocabulary, **(own | options))

    return make


def pixels(count=2, height=64, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attention(q, k, v, heads):
    """Of single sequences (T, D), head by head: the mixed values, and the mean of the scores before the softmax."""
    mixed, scores, width = [], [], q.shape[1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        score = q[:, part] @ k[:, part].T / width**0.5
        scores.append(score)
        mixed.append(score.softmax(1) @ v[:, part])
    return torch.cat(mixed, 1), torch.stack(scores).mean(0)


def joint_attention(state, name, x, heads):
    weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    q, k, v = (x @ weight.T + bias).chunk(3, 1)
    return linear(state, f"{name}.out_proj", attention(q, k, v, heads)[0])


def plain_tower(state, image):
    """The tower for one image whose grid is the stored one: unit features of the image and of the patches."""
    s = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    width, patch = len(s["conv1.weight"]), s["conv1.weight"].shape[-1]
    cells = [
        (image[:, y : y + patch, x : x + patch] * s["conv1.weight"]).sum((1, 2, 3))
        for y in range(0, image.shape[1], patch)
        for x in range(0, image.shape[2], patch)
    ]
    x = torch.stack([2 * s["class_embedding"], *cells]) + s["positional_embedding"]
    x = norm(s, "ln_pre", x)
    prompts = [s["prompt_embeddings"][0], *s["deep_prompt_embeddings"]]
    x = torch.cat([x[:1], torch.zeros_like(prompts[0]), x[1:]])
    for i, prompt in enumerate(prompts):
        x = torch.cat([x[:1], linear(s, "prompt_proj", prompt), x[1 + len(prompt) :]])
        block = f"transformer.resblocks.{i}"
        x = x + joint_attention(s, f"{block}.attn", norm(s, f"{block}.ln_1", x), width // 64)
        inner = linear(s, f"{block}.mlp.c_fc", norm(s, f"{block}.ln_2", x))
        x = x + linear(s, f"{block}.mlp.c_proj", inner * torch.sigmoid(1.702 * inner))
    x = norm(s, "ln_post", norm(s, "prompt_norm", x, 1e-6)) @ s["proj"]
    x = x / x.norm(dim=1, keepdim=True)
    return x[0], x[1 + len(prompts[0]) :]


def plain_masks(state, image, patches, texts, layout, trusty=True):
    s = {name.removeprefix("decode_head."): tensor for name, tensor in state.items()}
    if layout == "tagclip" and trusty:
        texts = torch.cat([texts, s["disc_token"]])
    prefix = "relationship_discriptor." if layout == "tagclip" else ""
    q = linear(s, f"{prefix}q_proj", torch.cat([texts * image, texts], 1))
    for i in range(3):
        layer = f"decoder.layers.{i}"
        if layout == "tagclip" and i == 0:
            q = norm(s, f"{layer}.norm1", q + joint_attention(s, f"{layer}.self_attn", q, 8))
        parts = linear(s, f"{layer}.multihead_attn.q", q), *(linear(s, f"{layer}.multihead_attn.{p}", patches) for p in "kv")
        mixed, scores = attention(*parts, 8)
        q = norm(s, f"{layer}.norm2", q + linear(s, f"{layer}.multihead_attn.proj", mixed))
        q = norm(s, f"{layer}.norm3", q + linear(s, f"{layer}.linear2", linear(s, f"{layer}.linear1", q).relu()))
    return scores


@pytest.mark.parametrize("layout", ["tagclip", "zegclip"])
def test_the_network_is_the_plain_computation(layout, states, files):
    network, texts = load_prompted(files[layout], layout), query_features(31, 5)
    batch = pixels()
    image, patches = network.backbone(batch)
    found = network(batch, texts, layout == "tagclip")
    for i in range(len(batch)):
        whole, cells = plain_tower(states[layout], batch[i])
        torch.testing.assert_close(image[i], whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(patches[i].flatten(1).T, cells, atol=1e-5, rtol=0)
        expected = plain_masks(states[layout], whole, cells, texts, layout)
        torch.testing.assert_close(found[i].flatten(1), expected, atol=1e-4, rtol=0)


def test_without_the_trusty_token_the_other_queries_do_not_see_it(states, files):
    network, texts, batch = load_prompted(files["tagclip"], "tagclip"), query_features(31, 5), pixels(1)
    image, cells = plain_tower(states["tagclip"], batch[0])
    expected = plain_masks(states["tagclip"], image, cells, texts, "tagclip", trusty=False)
    found = network(batch, texts, False)
    torch.testing.assert_close(found[0].flatten(1), expected, atol=1e-4, rtol=0)
    assert (found - network(batch, texts, True)[:, :-1]).abs().max() > 1e-3


@pytest.mark.parametrize("trusty", ["both", "seen", "unseen", "off", "absent"])
def test_scores_are_corrected_by_the_split(trusty, build):
    segmentor = build(trusty=trusty, unseen="sky, 1", seen_offset=0.2)
    logits = segmentor.network(pixels(), segmentor.text, trusty != "absent")
    scores = torch.sigmoid(F.interpolate(logits, (64, 64), mode="bilinear")).numpy()
    expected = np.empty((2, 5, 64, 64))
    for c in range(5):
        if c in (1, 3):
            expected[:, c] = scores[:, c] * (scores[:, -1] if trusty in ("both", "unseen") else 1)
        else:
            expected[:, c] = (scores[:, c] - 0.2) * (1 - scores[:, -1] if trusty in ("both", "seen") else 1)
    found = segmentor.patch_logits(ob.WindowBatch(pixels()))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_scores_are_averaged_over_windows_after_the_sigmoid(build):
    """And a window smaller than those of the training is stretched from their size."""
    image = rgb_image(61, 80, 64)
    segmentor = build("zegclip", short_side=64)
    context = ob.make_context(image, segmentor)
    assert context.pixels.shape == (3, 80, 64)
    total, count = torch.zeros(5, 80, 64), torch.zeros(80, 1)
    for top in (0, 16):
        window = segmentor.patch_logits(ob.WindowBatch(context.pixels[None, :, top : top + 64]))[0]
        total[:, top : top + 64] += window
        count[top : top + 64] += 1
    found = ob.segment(segmentor, image)
    np.testing.assert_allclose(found.scores, (total / count).softmax(0), atol=1e-5)
    assert (found.label_map == (total / count).argmax(0)).float().mean() > 0.999
    small = segmentor.patch_logits(ob.WindowBatch(context.pixels[None, :, :32, :48]))
    assert small.shape == (1, 5, 64, 64)


def test_synonyms_belong_to_the_part_of_their_class(build):
    vocabulary = ob.Vocabulary.from_features(query_features(31, 4), [0, 1, 1, -1])
    assert build(vocabulary=vocabulary, unseen=(1,)).is_unseen == [False, True, True, False]


def test_the_split_is_that_of_the_data_set(build, prepared):
    dataset = ob.load_dataset("voc20", prepared("voc20"))
    vocabulary = dataset.vocabulary(templates="none")
    assert [vocabulary.classes[c] for c in vocabulary.unseen] == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    assert [c for c, unseen in enumerate(build(vocabulary=vocabulary).is_unseen) if unseen] == [15, 16, 17, 18, 19]
    assert not any(build().is_unseen)
    chosen = build(vocabulary=vocabulary, unseen="cow,2")
    assert [c for c, unseen in enumerate(chosen.is_unseen) if unseen] == [2, 9]


@pytest.mark.parametrize("unseen", ["sky,horse", "5", (0, 7), (-1,)])
def test_an_unseen_class_that_is_no_class_is_named(unseen, build):
    with pytest.raises(ob.OvssError, match=r"class in unseen.*(horse|5|7|-1)"):
        build(unseen=unseen)


def test_the_use_of_the_split_is_counted(build):
    segmentor = build(unseen="sky")
    segmentor.patch_logits(ob.WindowBatch(pixels(4), padding=1))
    assert segmentor.observed == {"windows": 3, "windows_scored_by_split": 3}
    for options in ({}, {"unseen": "sky", "trusty": "off", "seen_offset": 0.0}):
        other = build(**options)
        other.patch_logits(ob.WindowBatch(pixels()))
        assert other.observed == {"windows": 2, "windows_scored_by_split": 0}


def test_the_image_tower_of_clip_does_not_run(build, tiny_clip, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the trunk ran")

    monkeypatch.setattr(type(tiny_clip), "trunk", refuse)
    assert ob.segment(build(), rgb_image(62, 70, 90)).label_map.shape == (70, 90)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("layout", ["tagclip", "zegclip"])
def test_weights_in_the_official_layout_come_back(layout, wrapper, states, save):
    network = load_prompted(save(states[layout], wrapper), layout)
    own = network.state_dict()
    assert all(torch.equal(own[name], states[layout][name]) for name in own)
    unused = states[layout].keys() - own.keys()
    assert all("norm1" in name or name.startswith("text_encoder.") for name in unused)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(isinstance(part, nn.Module) and part.training for part in network.modules())


REQUIRED = ["backbone.proj", "backbone.conv1.weight", "backbone.prompt_embeddings", "decode_head.disc_token"]
REQUIRED += ["backbone.transformer.resblocks.1.attn.in_proj_bias", "decode_head.decoder.layers.0.norm1.weight"]
REQUIRED += ["decode_head.decoder.layers.0.self_attn.out_proj.bias", "decode_head.decoder.layers.2.multihead_attn.v.weight"]
REQUIRED += ["backbone.positional_embedding", "decode_head.decoder.layers.0.linear1.weight"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_tensor_is_named(name, states, save):
    state = {key: tensor for key, tensor in states["tagclip"].items() if key != name}
    with pytest.raises(ob.OvssError, match=name):
        load_prompted(save(state), "tagclip")


@pytest.mark.parametrize(
    "name", ["decode_head.conv_seg.weight", "backbone.extra", "decode_head.decoder.layers.1.self_attn.bias"]
)
def test_an_unexpected_tensor_is_named(name, states, save):
    with pytest.raises(ob.OvssError, match=name):
        load_prompted(save(states["tagclip"] | {name: torch.zeros(3)}), "tagclip")


@pytest.mark.parametrize("name", [*REQUIRED[4:8], "backbone.ln_post.bias", "decode_head.disc_token"])
def test_a_tensor_of_the_wrong_shape_is_named(name, states, save):
    with pytest.raises(ob.OvssError, match=name):
        load_prompted(save(states["tagclip"] | {name: torch.zeros(5)}), "tagclip")


def test_one_layout_is_not_taken_for_the_other(files):
    with pytest.raises(ob.OvssError, match=r"decode_head\.q_proj\.weight|disc_token"):
        load_prompted(files["zegclip"], "tagclip")
    with pytest.raises(ob.OvssError, match=r"relationship_discriptor|decode_head\.q_proj\.weight"):
        load_prompted(files["tagclip"], "zegclip")


def test_what_cannot_work_is_refused_at_once(build, tiny_clip, vocabulary):
    with pytest.raises(ob.OvssError, match="checkpoint=FILE"):
        build(checkpoint=None)
    with pytest.raises(ob.OvssError, match="layout=zegclip has no trusty token"):
        build("zegclip", trusty="both")
    other = ob.Vocabulary.from_features(query_features(31, 4, 32))
    with pytest.raises(ob.OvssError, match=r"64 channels.*32"):
        ob.segment(build(vocabulary=other), rgb_image(62, 70, 90))
