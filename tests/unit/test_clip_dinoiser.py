"""CLIP-DINOiser: formulas against a plain computation with open_clip's own forward pass, the background rule, checkpoints."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.image import normalize
from ovss_bench.segmentors.clip_dinoiser import CLIPDINOiser
from parity.seeded import query_features, rgb_image
from trained_heads import dinoiser_state

WINDOW = normalize(rgb_image(3, 48, 64), "clip_exact")[None]


@pytest.fixture(scope="module")
def state():
    return dinoiser_state(128)


@pytest.fixture
def build(state, tmp_path, tiny_clip):
    """`build(**options)`: the method with seven classes, the first of which is the background."""

    def build(content=state, background=True, **options):
        torch.save(content, tmp_path / "last.pt")
        vocabulary = ob.Vocabulary.from_features(query_features(31, 7), background=background)
        weights = {"checkpoint": tmp_path / "last.pt", "position": "size"}
        return ob.build_segmentor("clip_dinoiser", clip=tiny_clip, vocabulary=vocabulary, **weights | options)

    return build


@torch.inference_mode()
def plain(clip, state, queries, gamma=0.2, delta=0.99, block=-3, found=False):
    """Probabilities (Q, h, w) of WINDOW, patch by patch, from what hooks on open_clip's forward pass see."""
    visual, seen = clip.model.visual, {}
    blocks = visual.transformer.resblocks
    handles = [
        blocks[block].ln_2.register_forward_hook(lambda module, inputs, output: seen.update(middle=output)),
        blocks[-2].register_forward_hook(lambda module, inputs, output: seen.update(z=output)),
    ]
    table, visual.positional_embedding.data = visual.positional_embedding.data, resized(visual.positional_embedding.data)
    visual(WINDOW)
    visual.positional_embedding.data = table
    for handle in handles:
        handle.remove()
    last, width = blocks[-1], visual.proj.shape[0]
    value_weight, value_bias = last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :]
    v = last.attn.out_proj(last.ln_1(seen["z"]) @ value_weight.T + value_bias) + seen["z"]
    v = v + last.mlp(last.ln_2(v))
    features = (visual.ln_post(v) @ visual.proj)[0, 1:]
    middle = seen["middle"][0, 1:].T.unflatten(1, (3, 4))
    convolved = F.conv2d(F.pad(middle[None], (1, 1, 1, 1), mode="replicate"), state["obj_proj.weight"], state["obj_proj.bias"])
    convolved = convolved[0].flatten(1).T
    result = torch.empty(len(queries), 12)
    for n in range(12):
        weights = torch.stack([F.cosine_similarity(convolved[n], convolved[m], dim=0) for m in range(12)])
        weights = torch.where(weights < gamma, 0, weights)
        pooled = sum(weights[m] * features[m] for m in range(12)) / (weights.sum() + 1e-6)
        cosines = torch.stack([F.cosine_similarity(pooled, query, dim=0) for query in queries])
        result[:, n] = (100 * cosines).softmax(0)
        if found and result[:, n].max() < delta:
            patch = middle.flatten(1)[:, n]
            logit = (patch / patch.norm()) @ state["bkg_decoder.weight"].flatten() + state["bkg_decoder.bias"]
            if 1 / (1 + math.exp(-logit)) <= 0.5:
                result[0, n] = 1
    return result.unflatten(1, (3, 4))


def resized(table):
    """The position embedding for the patches of WINDOW."""
    side = math.isqrt(len(table) - 1)
    patches = table[1:].T.unflatten(1, (side, side))[None]
    return torch.cat([table[:1], F.interpolate(patches, (3, 4), mode="bicubic")[0].flatten(1).T])


@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.5}, {"gamma": -1.0}, {"block": -1}, {"block": -12}, {"found": True}, {"found": True, "delta": 0.98}],
    ids=str,
)
def test_probabilities_are_those_of_a_plain_computation(options, build, state, tiny_clip):
    names = {"block": "feats_idx", "found": "apply_found"}
    segmentor = build(**{names.get(name, name): value for name, value in options.items()})
    expected = plain(tiny_clip, state, query_features(31, 7), **options)
    torch.testing.assert_close(segmentor.patch_logits(ob.WindowBatch(WINDOW))[0], expected, atol=2e-4, rtol=0)
    if options.get("found"):
        changed = (expected != plain(tiny_clip, state, query_features(31, 7))).sum()
        assert 0 < changed < 12


def test_overlapping_windows_average_probabilities(build):
    """As the official code does: window by window, each upsampled, then divided by the number of windows."""
    segmentor = build(short_side=64, window=64, stride=32, apply_found=True)
    image = rgb_image(5, 64, 96)
    pixels, total, count = normalize(image, "clip_exact"), torch.zeros(7, 64, 96), torch.zeros(64, 96)
    for left in (0, 32):
        probabilities = segmentor.patch_logits(ob.WindowBatch(pixels[None, :, :, left : left + 64]))
        total[:, :, left : left + 64] += F.interpolate(probabilities, (64, 64), mode="bilinear")[0]
        count[:, left : left + 64] += 1
    found = ob.segment(segmentor, image)
    torch.testing.assert_close(found.scores, total / count, atol=1e-5, rtol=0)
    assert torch.equal(found.label_map, found.scores.argmax(0))


def test_windows_are_padded_with_black_and_their_scores_stretched(build):
    segmentor = build(resize="none", position="grid")
    image = rgb_image(6, 40, 70)
    black = np.zeros((48, 80, 3), np.uint8)
    black[:40, :70] = image
    probabilities = segmentor.patch_logits(ob.WindowBatch(normalize(black, "clip_exact")[None]))
    expected = F.interpolate(probabilities, (40, 70), mode="bilinear")[0]
    torch.testing.assert_close(ob.segment(segmentor, image).scores, expected, atol=1e-5, rtol=0)


def test_positions_are_resampled_for_another_grid_of_as_many_tokens(build):
    pixels = torch.randn(1, 3, 7 * 16, 28 * 16, generator=torch.Generator().manual_seed(1))
    one, other = (build(position=rule).trunk(ob.WindowBatch(pixels)).tokens for rule in ("size", "grid"))
    assert (one - other).abs().max() > 1e-2
    square = torch.randn(1, 3, 14 * 16, 14 * 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*(build(position=rule).trunk(ob.WindowBatch(square)).tokens for rule in ("size", "grid")))


def test_a_class_scores_as_its_best_query(state, build, tiny_clip, tmp_path):
    build()
    features, group = query_features(31, 5), [0, 1, 1, 2, -1]
    vocabulary = ob.Vocabulary.from_features(features, group, background=True)
    segmentor = ob.build_segmentor("clip_dinoiser", clip=tiny_clip, vocabulary=vocabulary, checkpoint=tmp_path / "last.pt")
    planes = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([planes[0], planes[1:3].amax(0), planes[3]])
    assert torch.equal(segmentor.scores(planes, None), expected)


# Checkpoints


def wrapped(state, layout):
    if layout == "bare":
        return state
    if layout == "parallel":
        return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    return {layout: state, "epoch": 5, "optimizer_state_dict": {"param_groups": [{"lr": 5e-5}]}}


@pytest.mark.parametrize("layout", ["model_state_dict", "bare", "state_dict", "model", "parallel"])
def test_every_layout_gives_the_same_output(layout, build, state, tiny_clip):
    found = build(wrapped(state, layout)).patch_logits(ob.WindowBatch(WINDOW))[0]
    torch.testing.assert_close(found, plain(tiny_clip, state, query_features(31, 7)), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", dinoiser_state(4))
def test_a_missing_or_misshapen_tensor_is_named(name, build, state, tmp_path):
    rest = {key: tensor for key, tensor in state.items() if key != name}
    with pytest.raises(ob.OvssError, match=rf"{tmp_path}/last.pt does not fit: {name} is missing"):
        build(rest)
    for wrong in (state[name][None], torch.cat([state[name], state[name]])):
        with pytest.raises(ob.OvssError, match=rf"last.pt does not fit: .*{name}"):
            build(state | {name: wrong})


def test_an_unexpected_tensor_is_named(build, state):
    with pytest.raises(ob.OvssError, match=r"last.pt does not fit: found_proj.weight is unexpected"):
        build(state | {"found_proj.weight": torch.zeros(3)})


def test_a_checkpoint_for_another_width_is_refused(build):
    with pytest.raises(ob.OvssError, match=r"obj_proj.weight has the shape \(24, 96, 3, 3\) instead of \(P, 128, 3, 3\)"):
        build(dinoiser_state(96))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": None}, "clip_dinoiser needs trained weights: give checkpoint=FILE"),
        ({"feats_idx": 0}, "feats_idx=0 of clip_dinoiser: expected -12 to -1"),
        ({"feats_idx": -13}, "feats_idx=-13 of clip_dinoiser: expected -12 to -1"),
        ({"apply_found": True, "background": False}, "apply_found=true of clip_dinoiser needs a background class"),
    ],
)
def test_values_that_cannot_be_used_are_refused(options, message, build):
    with pytest.raises(ob.OvssError, match=message):
        build(**options)


def test_the_content_of_the_checkpoint_counts_not_its_path(tmp_path, state, voc, tiny_clip):
    from ovss_bench.runs.jobs import fingerprint, make_job

    dataset, jobs = ob.load_dataset("voc21", voc), []
    for folder, content in (("a", state), ("b", state), ("c", dinoiser_state(128, 8))):
        (tmp_path / folder).mkdir()
        torch.save(content, tmp_path / folder / "last.pt")
        overrides = {"checkpoint": str(tmp_path / folder / "last.pt")}
        jobs.append(make_job("clip_dinoiser", tiny_clip, dataset, overrides=overrides))
    one, same, other = (fingerprint(job, dataset.samples) for job in jobs)
    assert one == same != other


def test_the_class_has_the_published_constants():
    assert CLIPDINOiser.hyperparameters() == {
        "residual": True,
        "checkpoint": None,
        "gamma": 0.2,
        "delta": 0.99,
        "temperature": 100.0,
        "feats_idx": -3,
        "apply_found": False,
    }
