"""OV-Stitcher, step by step against plain computations: stitching, the encoder's last block, scope, branches, prompts."""

import json

import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.encoders.vision import load_vision
from ovss_bench.image import STATISTICS
from ovss_bench.inference.engine import predict
from ovss_bench.ops.across_windows import stitch
from ovss_bench.segmentors.merged_regions import merge_regions, region_attention
from parity.seeded import dino_state_dict, feature_map, query_features, region_map, rgb_image
from stand_ins import regions, vfm

SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "resized"}
IMAGE = rgb_image(4, 80, 112)
CORNERS = [(y, x) for y in (0, 16) for x in (0, 32, 48)]  # of its windows, in pixels


@pytest.fixture
def build(tiny_clip, tiny_vocabulary):
    return lambda vocabulary=tiny_vocabulary, **options: ob.build_segmentor(
        "ov_stitcher", clip=tiny_clip, vocabulary=vocabulary, **SMALL | {"vfm": vfm, "regions": regions} | options
    )


@pytest.fixture
def dino():
    return load_vision(state_dict=dino_state_dict(5, width=128), heads=2)


def whole_batch(segmentor):
    """All windows of IMAGE, as a run gives them."""
    context = ob.make_context(IMAGE, segmentor)
    windows = torch.stack([context.pixels[:, y : y + 64, x : x + 64] for y, x in CORNERS])
    return ob.WindowBatch(windows, torch.tensor(CORNERS), torch.zeros(6, dtype=torch.int64), [context])


def plain_stitch(maps, cell):
    """The mean of the windows that cover a cell of IMAGE, cell by cell."""
    result = torch.zeros(maps.shape[1], 80 // cell, 112 // cell)
    for row in range(80 // cell):
        for column in range(112 // cell):
            found = [
                each[:, row - y // cell, column - x // cell]
                for each, (y, x) in zip(maps, CORNERS, strict=True)
                if 0 <= row - y // cell < maps.shape[2] and 0 <= column - x // cell < maps.shape[3]
            ]
            result[:, row, column] = torch.stack(found).mean(0)
    return result


def tokens_of(maps):
    return maps.flatten(1).T


def test_stitching_with_overlaps_and_gaps():
    maps = feature_map(3, 4, 8, 8, batch=6)
    found = stitch(maps, [(y // 8, x // 8) for y, x in CORNERS])
    torch.testing.assert_close(found, plain_stitch(maps, 8), atol=1e-6, rtol=0)
    apart = stitch(torch.ones(2, 1, 2, 2), [(0, 0), (3, 0)])
    assert apart[0, :, 0].tolist() == [1, 1, 0, 1, 1]


@torch.inference_mode()
def test_the_last_block_of_the_encoder_sees_the_whole_image(build, dino):
    segmentor = build(vfm=dino)
    batch = whole_batch(segmentor)
    found, cell = segmentor.similar(batch)
    assert cell == 8
    statistics = [*STATISTICS["clip_exact"], *STATISTICS["imagenet"]]
    mean, std, new_mean, new_std = (torch.tensor(each).view(3, 1, 1) for each in statistics)
    x, grid = dino.model.before_last((batch.pixels * std + mean - new_mean) / new_std)
    state = dino_state_dict(5, width=128)

    def linear(name, y):
        return F.linear(y, state[f"blocks.3.{name}.weight"], state[f"blocks.3.{name}.bias"])

    def norm(name, y):
        return F.layer_norm(y, (128,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def joined(y):
        return tokens_of(plain_stitch(y[:, 1:].transpose(1, 2).unflatten(2, grid), 8))

    z = joined(norm("norm", x))
    q, k, v = (joined(part) for part in linear("attn.qkv", norm("blocks.3.norm1", x)).chunk(3, -1))
    heads = [(q[:, part] @ k[:, part].T / 8).softmax(-1) @ v[:, part] for part in (slice(0, 64), slice(64, 128))]
    z = z + linear("attn.proj", torch.cat(heads, 1))
    z = z + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("blocks.3.norm2", z))))
    torch.testing.assert_close(tokens_of(found), F.normalize(z, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("part_bytes", [4 * 30 * 7, 2**26])
def test_scope_pair_by_pair(build, part_bytes, monkeypatch):
    monkeypatch.setattr(region_attention, "__defaults__", (part_bytes,))
    features, values = F.normalize(tokens_of(feature_map(3, 12, 5, 6)[0]), dim=1), tokens_of(feature_map(7, 4, 5, 6)[0])
    ids = torch.from_numpy(region_map(5, 5, 6, 4)).flatten()
    similarity = features @ features.T
    logits = torch.full((30, 30), -torch.inf)
    for i in range(30):
        for j in range(30):
            loose = ids[i] == 0 or ids[j] == 0
            if similarity[i, j] > similarity.mean() if loose else ids[i] == ids[j]:
                logits[i, j] = 3 * similarity[i, j]
    expected = logits.softmax(-1) @ values
    torch.testing.assert_close(build(tau=3.0).attend(features, ids, values), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_spatial_branch_block_by_block(build, tiny_clip):
    segmentor = build()
    assert list(segmentor.spatial_states) == [5, 6, 7, 8, 9]
    batch = whole_batch(segmentor)
    trunk, outputs = segmentor.trunk(batch), []
    found = segmentor.spatial_branch(trunk, [(y // 16, x // 16) for y, x in CORNERS])
    for i in range(5, 10):
        block, x = tiny_clip.model.visual.transformer.resblocks[i], trunk.states[i]
        joint = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v, z = (
            tokens_of(plain_stitch(part[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), 16)) for part in (*joint.chunk(3, -1), x)
        )
        z = z + block.attn.out_proj((q @ k.T / 8).softmax(-1) @ v)
        outputs.append(z + block.mlp(block.ln_2(z)))
    torch.testing.assert_close(tokens_of(found), torch.stack(outputs).mean(0), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_semantic_branch_with_open_clips_own_mask(build, tiny_clip):
    segmentor = build(position="size")
    batch = whole_batch(segmentor)
    trunk, merged = segmentor.trunk(batch), torch.from_numpy(region_map(5, 10, 14, 4))
    found = segmentor.semantic_branch(batch, trunk, merged, 8)
    pixels = merged.repeat_interleave(8, 0).repeat_interleave(8, 1)
    placed = []
    for window, (y, x) in zip(batch.pixels, CORNERS, strict=True):
        coarse = pixels[y : y + 64 : 16, x : x + 64 : 16]
        ids, index = coarse.flatten().unique(return_inverse=True)
        start = tiny_clip.trunk(window[None], {0}, "size").states[0]
        assert len(ids) == int(index.max()) + 1
        tokens = plain_class_tokens(tiny_clip, start, index)
        places = index.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
        placed.append(tokens[places].permute(2, 0, 1))
    torch.testing.assert_close(found, plain_stitch(torch.stack(placed), 8), atol=1e-4, rtol=0)


def plain_class_tokens(clip, start, index):
    """Tokens of regions (R, D) after all of open_clip's blocks, in front of CLS and patches, seen by nobody."""
    count = int(index.max()) + 1
    x = torch.cat([start[:, :1].expand(-1, count, -1), start], 1)
    allowed = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    allowed[:, count:] = True
    for region in range(count):
        allowed[region, count + 1 :] = index == region
    for block in clip.model.visual.transformer.resblocks:
        x = block(x, attn_mask=torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf))
    return x[0, :count]


@torch.inference_mode()
def test_the_whole_pipeline_from_its_parts(build, tiny_clip):
    """Logits of the stitched image, interpolated once to the image, and the map correction."""
    segmentor = build()
    ((_, (prediction,)),) = predict([segmentor], [("a", IMAGE)], keep_scores=True, batch=4)
    batch = whole_batch(segmentor)
    trunk, visual, last = segmentor.trunk(batch), tiny_clip.model.visual, tiny_clip.model.visual.transformer.resblocks[-1]
    features = F.normalize(plain_stitch(vfm(batch), 8), dim=0)
    ids = torch.from_numpy(regions(IMAGE))[::8, ::8]
    merged = merge_regions(tokens_of(features), ids, 0.2)
    corners = [(y // 16, x // 16) for y, x in CORNERS]

    def values(tokens):
        return F.linear(last.ln_1(tokens), last.attn.in_proj_weight[-128:], last.attn.in_proj_bias[-128:])

    main = plain_stitch(values(trunk.tokens)[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), 16)
    spatial = values(tokens_of(segmentor.spatial_branch(trunk, corners))).T.unflatten(1, (5, 7))
    outputs = []
    for part in (main, spatial):
        fine = tokens_of(F.interpolate(part[None], (10, 14), mode="bilinear")[0])
        outputs.append(last.attn.out_proj(segmentor.attend(tokens_of(features), merged.flatten(), fine)))
    outputs.append(tokens_of(segmentor.semantic_branch(batch, trunk, merged, 8)))
    joint = sum(weight * visual.ln_post(each) for weight, each in zip((1, 1, 0.5), outputs, strict=True)) @ visual.proj
    cosines = (F.normalize(joint, dim=1) @ segmentor.text.T).T.view(1, -1, 10, 14)
    expected = segmentor.decision.class_scores(F.interpolate(cosines, (80, 112), mode="bilinear")[0])
    torch.testing.assert_close(prediction.scores, expected, atol=1e-4, rtol=0)
    for region in torch.from_numpy(regions(IMAGE)).unique()[1:]:
        inside = torch.from_numpy(regions(IMAGE)) == region
        assert prediction.label_map[inside].unique().tolist() == [int(expected.argmax(0)[inside].bincount().argmax())]


def test_prompts_of_a_name_weigh_as_much_as_the_templates(build, tiny_clip, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"dog": ["A dog runs.", "Dogs bark at night."], "unknown": ["Nothing."]}))
    vocabulary = ob.Vocabulary.from_names(["sky", "dog"], templates="photo")
    plain, more = build(vocabulary), build(vocabulary, prompts=file)
    prompts = [template.format("dog") for template in vocabulary.prompts]
    rows = tiny_clip.encode_text([*prompts, "A dog runs.", "Dogs bark at night."])
    torch.testing.assert_close(more.text[1], F.normalize(rows.mean(0), dim=0))
    assert torch.equal(more.text[0], plain.text[0])
    assert not torch.allclose(more.text[1], plain.text[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "expected {name"), ("{", "^prompts=.* cannot be read as JSON"), ('{"dog": "x"}', "expected {name")],
)
def test_prompts_of_another_form_are_refused(build, tmp_path, content, message):
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(ob.OvssError, match=message):
        build(ob.Vocabulary.from_names(["dog"], templates="photo"), prompts=file).encode_text()
    with pytest.raises(ob.OvssError, match="gives text features"):
        build(ob.Vocabulary.from_features(query_features(31, 2)), prompts=file).encode_text()


def test_an_encoder_without_such_a_block_is_refused(build, dino, monkeypatch):
    monkeypatch.setattr(dino.model, "rotary", True)
    with pytest.raises(ob.OvssError, match="Use a DINO, DINOv2 or MAE"):
        ob.segment(build(vfm=dino), IMAGE)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("voc21", (448, 336, 112, 0.1)),
        ("context60", (448, 336, 112, 0.1)),
        ("coco_object", (448, 336, 112, 0.2)),
        ("ade20k", (448, 336, 112, 0)),
        ("coco_stuff", (448, 336, 224, 0)),
        ("cityscapes", (560, 224, 112, 0)),
    ],
)
def test_published_sizes_windows_and_thresholds(dataset, expected):
    recipe = ob.compose_recipe("ov_stitcher", clip="vit_b16", dataset=dataset)
    assert (recipe.short_side, recipe.window, recipe.stride, recipe.threshold) == expected
