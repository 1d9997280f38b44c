"""PACL: each formula against a plain computation, patch by patch, and its checkpoints."""

import math

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.encoders.patch_embedder import PatchEmbedder, compatibility, contrastive_loss
from parity.seeded import query_features
from trained_heads import pacl_state

WINDOW = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(4))
VISION = [name for name in pacl_state(4, 4) if "visual_projection.2.text" not in name and "module.visual" in name]
TEXT = [name for name in pacl_state(4, 4) if "module.text_projection" in name]


@pytest.fixture(scope="module")
def state():
    return pacl_state(128, 64)


@pytest.fixture
def build(state, tmp_path, tiny_clip):
    def build(content=state, **options):
        torch.save(content, tmp_path / "pacl.pt")
        vocabulary = ob.Vocabulary.from_features(query_features(31, 7))
        options = {"checkpoint": tmp_path / "pacl.pt"} | options
        return ob.build_segmentor("pacl", clip=tiny_clip, vocabulary=vocabulary, **options)

    return build


def norm(x, weight, bias):
    """LayerNorm of a vector."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def of_patch(state, v):
    part = {name.removeprefix("module.visual_projection."): tensor for name, tensor in state.items()}
    n = norm(v, part["0.weight"], part["0.bias"])
    inner = part["2.non_linear_projection.0.weight"] @ n + part["2.non_linear_projection.0.bias"]
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    outer = part["2.non_linear_projection.2.weight"] @ inner + part["2.non_linear_projection.2.bias"]
    return part["2.linear_projection.0.weight"] @ n + part["2.linear_projection.0.bias"] + outer


def of_text(state, t):
    part = {name.removeprefix("module.text_projection."): tensor for name, tensor in state.items()}
    if "2.weight" not in part:
        return t
    return part["2.weight"] @ norm(t, part["0.weight"], part["0.bias"]) + part["2.bias"]


@torch.inference_mode()
def plain(clip, state, ln_post=True):
    """Cosines (Q, h, w) of WINDOW, from open_clip's own forward pass."""
    visual, seen = clip.model.visual, {}
    name = "after" if ln_post else "before"
    handle = visual.ln_post.register_forward_hook(
        lambda module, inputs, output: seen.update(before=inputs[0][0], after=output[0])
    )
    table = visual.positional_embedding.data
    patches = table[1:].T.unflatten(1, (14, 14))[None]
    small = F.interpolate(patches, (3, 4), mode="bilinear")[0].flatten(1).T
    visual.positional_embedding.data = torch.cat([table[:1], small])
    visual(WINDOW)
    visual.positional_embedding.data = table
    handle.remove()
    embedded = [of_patch(state, v) for v in seen[name][1:]]
    texts = [of_text(state, t) for t in query_features(31, 7)]
    cosines = [[(v @ t) / (v.norm() * t.norm()) for v in embedded] for t in texts]
    return torch.tensor(cosines).unflatten(1, (3, 4))


@pytest.mark.parametrize("ln_post", [True, False])
def test_cosines_are_those_of_a_plain_computation(ln_post, build, state, tiny_clip):
    found = build(ln_post=ln_post).patch_logits(ob.WindowBatch(WINDOW))[0]
    torch.testing.assert_close(found, plain(tiny_clip, state, ln_post), atol=1e-5, rtol=0)


@pytest.mark.parametrize("text_embedder", [None, False])
def test_without_an_embedder_texts_are_those_of_clip(text_embedder, build, tiny_clip):
    state = pacl_state(128, 64, joint=64)
    frozen = {name: tensor for name, tensor in state.items() if name not in TEXT}
    found = build(frozen if text_embedder is None else state, text_embedder=text_embedder)
    torch.testing.assert_close(found.patch_logits(ob.WindowBatch(WINDOW))[0], plain(tiny_clip, frozen), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("attention", "scale"), [("softmax", 1.0), ("softmax", 5.0), ("sigmoid", 10.0)])
def test_compatibility_is_that_of_a_plain_computation(attention, scale):
    generator = torch.Generator().manual_seed(3)
    patches, texts = torch.randn(2, 5, 6, generator=generator), torch.randn(3, 6, generator=generator)
    found = compatibility(patches, texts, attention, scale)
    for image in range(2):
        for text in range(3):
            t = texts[text]
            s = [scale * float(v @ t / (v.norm() * t.norm())) for v in patches[image]]
            weights = [math.exp(x) if attention == "softmax" else 1 / (1 + math.exp(-x)) for x in s]
            total = sum(weights) if attention == "softmax" else 1
            u = sum(w / total * v for w, v in zip(weights, patches[image], strict=True))
            assert found[image, text] == pytest.approx(float(u @ t / (u.norm() * t.norm())), abs=1e-5)


def test_the_loss_is_infonce_in_both_directions():
    phi = torch.tensor([[0.9, 0.1], [0.3, 0.5]])
    rows = [math.log(math.exp(9) + math.exp(1)) - 9, math.log(math.exp(3) + math.exp(5)) - 5]
    columns = [math.log(math.exp(9) + math.exp(3)) - 9, math.log(math.exp(1) + math.exp(5)) - 5]
    assert contrastive_loss(phi).item() == pytest.approx(sum(rows + columns) / 4, abs=1e-5)


def test_the_module_has_the_names_of_the_checkpoints():
    names = {f"module.{name}" for name in PatchEmbedder(6, 5, 4, text=3).state_dict()}
    assert names == {*VISION, *TEXT}
    assert {f"module.{name}" for name in PatchEmbedder(6, 5, 4).state_dict()} == set(VISION)


# Checkpoints


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_layout_gives_the_same_output(prefix, wrapper, build, state, tiny_clip):
    content = {name.replace("module.", prefix): tensor for name, tensor in state.items()}
    found = build(content if wrapper is None else {wrapper: content, "epoch": 1})
    torch.testing.assert_close(found.patch_logits(ob.WindowBatch(WINDOW))[0], plain(tiny_clip, state), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*VISION, *TEXT])
def test_a_missing_or_misshapen_tensor_is_named(name, build, state, tmp_path):
    short = name.removeprefix("module.")
    with pytest.raises(ob.OvssError, match=rf"{tmp_path}/pacl.pt does not fit: {short} is missing"):
        build({key: tensor for key, tensor in state.items() if key != name})
    for wrong in (state[name][None], torch.cat([state[name], state[name]])):
        with pytest.raises(ob.OvssError, match=rf"pacl.pt does not fit: .*{short}"):
            build(state | {name: wrong})


def test_an_unexpected_tensor_is_named(build, state):
    with pytest.raises(ob.OvssError, match=r"pacl.pt does not fit: audio_projection.0.weight is unexpected"):
        build(state | {"module.audio_projection.0.weight": torch.zeros(3)})


def test_another_clip_than_that_of_the_checkpoint_is_refused(build, state, tiny_clip):
    own = tiny_clip.model.visual.proj.detach()
    build(state | {"module.clip_model.visual.proj": own.half()})
    with pytest.raises(ob.OvssError, match="holds another CLIP"):
        build(state | {"module.clip_model.visual.proj": own.flip(0)})
    with pytest.raises(ob.OvssError, match=r"clip_model.visual.proj has the shape \(128, 40\)"):
        build(state | {"module.clip_model.visual.proj": own[:, :40]})
    with pytest.raises(ob.OvssError, match=r"visual_projection.0.weight has the shape \(96,\) instead of \(128\)"):
        build(pacl_state(96, 64))
    with pytest.raises(ob.OvssError, match=r"expects text features of 32 channels, but those of clip .* have 64"):
        build(pacl_state(128, 32))


def test_values_that_cannot_be_used_are_refused(build, state):
    with pytest.raises(ob.OvssError, match="pacl needs trained weights: give checkpoint=FILE"):
        build(checkpoint=None)
    frozen = {name: tensor for name, tensor in pacl_state(128, 64, joint=64).items() if name not in TEXT}
    with pytest.raises(ob.OvssError, match=r"text_embedder=true of pacl, but checkpoint .* has no text embedder"):
        build(frozen, text_embedder=True)
    with pytest.raises(ob.OvssError, match=r"expects text features of 48 channels"):
        build(text_embedder=False)
