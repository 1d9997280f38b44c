"""What parity does not cover: regions of windows, the region tokens, ablations, the bank."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import ovss_bench as ob
from ovss_bench.auxiliary.bank import load_bank
from ovss_bench.encoders.clip_spec import ClipSpec
from ovss_bench.files import WEIGHTS
from ovss_bench.inference.engine import predict
from ovss_bench.ops.nearest import torch_nearest
from ovss_bench.ops.vote import majority_vote
from ovss_bench.segmentors.merged_regions import PADDING, joint_attention, region_attention
from parity.seeded import query_features, rgb_image
from stand_ins import regions, sources_of, vfm


def build(name, clip, vocabulary, **options):
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary, **(sources_of(name) | options))


def window_batch(segmentor, image, origins, side):
    scene = ob.make_context(image, segmentor)
    count = len(origins)
    return ob.WindowBatch(
        torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)),
        origins=torch.tensor(origins),
        images=torch.zeros(count, dtype=torch.int64),
        contexts=[scene],
    )


def test_regions_are_cut_out_where_the_window_is_and_padded_where_it_is(tiny_clip, tiny_vocabulary):
    options = {"resize": "none", "window": 100, "stride": 50, "pad": "center", "pad_multiple": 56}
    segmentor = build("corrclip", tiny_clip, tiny_vocabulary, **options)
    image = rgb_image(3, 130, 180)
    batch = window_batch(segmentor, image, [(-6, -6), (24, 44)], 112)
    whole = torch.from_numpy(regions(image))
    for window, (y, x) in zip(segmentor.window_regions(batch), [(0, 0), (30, 50)], strict=True):
        assert torch.equal(window[6:106, 6:106], whole[y : y + 100, x : x + 100])
        border = torch.ones(112, 112, dtype=torch.bool)
        border[6:106, 6:106] = False
        assert (window[border] == PADDING).all()


def test_the_engine_shows_each_window_its_own_regions(tiny_clip, tiny_vocabulary, monkeypatch):
    segmentor = build("corrclip", tiny_clip, tiny_vocabulary, short_side=70, window=64, stride=32, pad_multiple=None)
    seen, original = [], type(segmentor).window_regions

    def spy(self, batch):
        windows = original(self, batch)
        seen.extend(zip(batch.pixels, windows, strict=True))
        return windows

    monkeypatch.setattr(type(segmentor), "window_regions", spy)
    monkeypatch.setattr(segmentor, "regions", lambda image: image[..., 0].astype(np.int64))
    images = {key: np.full((70, 70 + 9 * key, 3), 40 * key, np.uint8) for key in (1, 2)}
    list(predict([segmentor], images.items(), batch=3))
    mean, std = (torch.tensor(v)[0] for v in ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)))
    assert len(seen) >= 4
    for pixels, window in seen:
        if pixels.abs().sum() > 0:  # not the tail of the batch
            assert torch.equal((pixels[0] * std + mean).round().long(), window)


def test_region_tokens_are_those_of_a_joint_masked_pass(tiny_clip, tiny_vocabulary):
    """The official code puts the region tokens before the others and masks the attention of all."""
    segmentor = build("corrclip", tiny_clip, tiny_vocabulary)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    trunk = segmentor.trunk(ob.WindowBatch(pixels))
    parts = torch.arange(24).view(4, 6) // 9  # three regions
    tokens = torch.cat([trunk.states[0][:, :1].expand(-1, 3, -1), trunk.states[0]], 1)
    allowed = torch.zeros(28, 28, dtype=torch.bool)
    allowed[3:, 3:] = True
    allowed[:3, 3] = True
    allowed[:3, 4:] = parts.flatten() == torch.arange(3)[:, None]
    for i in range(tiny_clip.depth):
        block = tiny_clip.block(i, trunk.grid)
        q, k, v = block.qkv(block.ln_1(tokens))
        tokens = tokens + block.project(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    expected = tiny_clip.project(tokens[:, :3])[0][parts.flatten()]
    with torch.inference_mode():
        torch.testing.assert_close(segmentor.semantic_branch(trunk, parts[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_patches_see_their_region_and_similar_unsegmented_ones_and_no_other_similarity_is_computed():
    generator = torch.Generator().manual_seed(9)
    unit = F.normalize(torch.randn(10, 4, generator=generator) + 0.5, dim=1)
    ids = torch.tensor([3, 9, 4, 4, 9, 3, 4, 9, 4, 4])  # two of ten are unsegmented
    similarity = unit @ unit.T
    loose = (ids == 3)[:, None] | (ids == 3)
    allowed = torch.where(loose, similarity > similarity.mean(), ids[:, None] == ids) | torch.eye(10, dtype=torch.bool)
    assert (loose & allowed).any()
    assert (loose & ~allowed).any()
    expected = (4 * similarity).masked_fill(~allowed, -torch.inf).softmax(-1)
    torch.testing.assert_close(joint_attention(unit, ids, 4.0), expected, atol=1e-6, rtol=0)
    for part_bytes in (1, 2**20):
        parts = list(region_attention(unit, ids, 4.0, part_bytes))
        assert sum(part.numel() for _, _, part in parts) == 2 * 10 + 3 * (3 + 2) + 5 * (5 + 2)
        assert sorted(torch.cat([rows for rows, _, _ in parts]).tolist()) == list(range(10))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_branches_equal_attention_to_enlarged_values(beta, tiny_clip, tiny_vocabulary):
    """The plain computation: values enlarged, attended to, and projected last."""
    segmentor = build("corrclip", tiny_clip, tiny_vocabulary, alpha=0.7, beta=beta)
    batch = ob.WindowBatch(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(8)))
    with torch.inference_mode():
        trunk, features = segmentor.trunk(batch), segmentor.features(batch)
        grid, block = tuple(features.shape[2:]), tiny_clip.block(-1, trunk.grid)
        assert grid != trunk.grid
        found = [
            segmentor.correlation(window.flatten(1).T, torch_nearest(segments, grid))
            for window, segments in zip(features, segmentor.window_regions(batch), strict=True)
        ]
        mean = torch.stack([trunk.states[i] for i in segmentor.spatial_states]).mean(0)
        attention, embeddings = torch.stack([each for _, each in found]), 0
        for states, weight in ((trunk.tokens, 1), (mean, 0.7)):
            mixed = attention @ block.value_map(states, grid)
            embeddings = embeddings + weight * tiny_clip.project(block.project(mixed[:, None]))
        if beta:
            embeddings = embeddings + beta * segmentor.semantic_branch(trunk, torch.stack([each for each, _ in found]))
        torch.testing.assert_close(segmentor.patch_logits(batch), segmentor.compare(embeddings, grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "ablation",
    [{"scope": False}, {"merge_eps": 0.0}, {"alpha": 0.0}, {"beta": 0.0}, {"tau": 1.0}, {"spatial_blocks": 2}],
    ids=lambda ablation: next(iter(ablation)),
)
def test_ablations_change_the_result(ablation, tiny_clip, tiny_vocabulary):
    batch = ob.WindowBatch(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(6)))
    full, less = (
        build("corrclip", tiny_clip, tiny_vocabulary, **options).patch_logits(batch)
        for options in ({"merge_eps": 0.9}, ablation)
    )
    assert (full - less).abs().max() > 1e-4


def test_without_correction_regions_may_hold_several_labels(tiny_clip, tiny_vocabulary):
    image = rgb_image(8, 90, 120)
    options = {"short_side": 90, "window": 64, "stride": 32, "threshold": 0.0}
    corrected, plain = (
        ob.segment(build("corrclip", tiny_clip, tiny_vocabulary, correction=on, **options), image).label_map
        for on in (True, False)
    )
    assert torch.equal(corrected, majority_vote(plain, torch.from_numpy(regions(image)), skip=0))


def test_spatial_branch_averages_the_published_blocks(tiny_clip, tiny_vocabulary):
    # Outputs of blocks 5 to 9 of twelve, counted from 0, are the inputs of 6 to 10.
    assert list(build("corrclip", tiny_clip, tiny_vocabulary).spatial_states) == [6, 7, 8, 9, 10]


def test_vote_takes_the_most_frequent_label_and_of_equals_the_smallest():
    labels = torch.tensor([[2, 2, 1], [1, 3, 3], [0, 3, 5]])
    areas = torch.tensor([[7, 7, 7], [7, 4, 4], [4, 9, 9]])
    assert majority_vote(labels, areas).tolist() == [[1, 1, 1], [1, 3, 3], [3, 3, 3]]
    assert majority_vote(labels, areas, skip=7).tolist() == [[2, 2, 1], [1, 3, 3], [3, 3, 3]]


def test_nearest_is_torchs():
    maps = torch.randint(0, 20000, (2, 13, 17), generator=torch.Generator().manual_seed(2))
    expected = F.interpolate(maps[:, None].double(), (29, 8), mode="nearest")[:, 0].long()
    assert torch.equal(torch_nearest(maps, (29, 8)), expected)


def test_the_bank_moves_the_scores_towards_what_it_knows(tiny_clip, tiny_vocabulary):
    """Every region of the bank is the fourth query, so all pixels turn to its class."""
    text = query_features(31, 7)
    bank = ob.RegionBank(keys=torch.randn(6, 12), values=text[3].expand(6, -1))
    options = {"short_side": 64, "window": 64, "stride": 32, "threshold": 0.0, "support": 1.0, "correction": False}
    labels = ob.segment(build("corrclip_v2", tiny_clip, tiny_vocabulary, bank=bank, **options), rgb_image(9, 70, 80)).label_map
    assert labels.unique().tolist() == [1]


def test_banks_come_from_files(tmp_path):
    tensors = {"keys": torch.randn(5, 4).half(), "values": torch.randn(5, 6).half()}
    save_file(tensors, tmp_path / "bank.safetensors")
    torch.save(tensors, tmp_path / "bank.pt")
    query = F.normalize(tensors["keys"].float(), dim=-1)
    for name in ("bank.safetensors", "bank.pt"):
        bank = load_bank(tmp_path / name)
        assert bank.search(query, 2)[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert bank.search(query, 99).shape == (5, 5)


def test_an_auxiliary_clip_encodes_the_queries(tmp_path):
    clip = ob.load_clip("demo")
    vocabulary = ob.Vocabulary.from_names(["sand", "striped red cloth"], templates="none")
    text = vocabulary.features(clip)
    tensors = {"keys": torch.eye(2), "values": text.flip(0).contiguous(), "aux_values": text}
    save_file(tensors, tmp_path / "bank.safetensors", {"aux_clip": "demo"})
    cosines = load_bank(tmp_path / "bank.safetensors").cosines(torch.tensor([[0], [1]]), text, vocabulary)
    expected = (text @ text.flip(0).T + text @ text.T) / 2
    torch.testing.assert_close(cosines, expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"keys": torch.ones(2, 3)}, "lacks values"),
        ({"keys": torch.ones(2, 3), "values": torch.ones(3, 3)}, r"\[2, 3\] rows"),
        ({"keys": torch.ones(2, 3), "values": torch.ones(2, 3), "aux_values": torch.ones(2, 3)}, "aux_clip"),
    ],
)
def test_bad_banks_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "bank.safetensors")
    with pytest.raises(ob.OvssError, match=message):
        load_bank(tmp_path / "bank.safetensors")


def test_banks_are_told_apart_by_all_that_they_hold():
    clip = ob.load_clip("demo")
    keys, values, aux = torch.eye(2), torch.rand(2, 3), torch.rand(2, 4)
    vocabulary = ob.Vocabulary.from_features(torch.rand(2, 4))
    others = [(None, None), (aux, torch.eye(2, 4)), (aux.flip(0), torch.eye(2, 4)), (aux, vocabulary), (aux, clip)]
    assert len({ob.RegionBank(keys, values, *other).digest for other in others}) == 5


@pytest.mark.parametrize("count", [0, -1])
def test_support_of_no_region_is_refused(count, tiny_clip, tiny_vocabulary):
    with pytest.raises(ob.OvssError, match=f"num_support={count} of corrclip_v2"):
        build("corrclip_v2", tiny_clip, tiny_vocabulary, num_support=count)


def test_a_folder_of_features_is_known_by_their_content(tmp_path):
    digests = set()
    for values in (np.ones((2, 3, 3)), np.zeros((2, 3, 3))):
        np.savez(tmp_path / "image.npz", features=values)
        digests.add(ob.load_vision(str(tmp_path)).digest)
    (tmp_path / "image.npz").write_bytes(b"damaged")
    assert len(digests | {ob.load_vision(str(tmp_path)).digest}) == 3
    with pytest.raises(ob.OvssError, match="folder of features: heads would have no effect"):
        ob.load_vision(tmp_path, heads=2)


def test_paths_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "image.npz", features=np.ones((2, 3, 3)))
    torch.save({"keys": torch.ones(2, 3), "values": torch.ones(2, 4)}, tmp_path / "bank.pt")
    assert ob.load_vision("~").digest == ob.load_vision(str(tmp_path)).digest
    with pytest.raises(ob.OvssError, match="Leave @image out"):
        ob.load_vision("~@image")
    assert load_bank("~/bank.pt").digest == load_bank(tmp_path / "bank.pt").digest
    shutil.copy(WEIGHTS / "demo_clip.safetensors", tmp_path / "mine.safetensors")
    spec = ClipSpec.of("~/mine.safetensors")
    assert (spec.label, ob.load_clip(spec.name).name) == ("mine", "mine")


def test_a_missing_bank_is_named(tiny_clip, tiny_vocabulary):
    segmentor = build("corrclip_v2", tiny_clip, tiny_vocabulary, bank="nowhere.pt")
    with pytest.raises(ob.OvssError, match=r"nowhere\.pt does not exist"):
        ob.segment(segmentor, rgb_image(9, 70, 80))


def test_auxiliary_values_need_their_vocabulary():
    with pytest.raises(ob.OvssError, match="go together"):
        ob.RegionBank(torch.ones(2, 3), torch.ones(2, 4), aux_values=torch.ones(2, 4))


def test_features_of_the_whole_image_may_come_from_a_folder(tiny_clip, tiny_vocabulary, tmp_path):
    image = rgb_image(10, 90, 130)
    features = vfm(ob.WindowBatch(torch.randn(1, 3, 90, 130, generator=torch.Generator().manual_seed(7)))).numpy()
    np.savez_compressed(tmp_path / f"{ob.image_key(image)}.npz", features=features[0])
    options = {"short_side": 100, "window": 64, "stride": 32, "pad_multiple": None}
    given, read = (
        ob.segment(build("corrclip_v2", tiny_clip, tiny_vocabulary, vfm=source, **options), image).scores
        for source in (lambda batch: torch.from_numpy(features), str(tmp_path))
    )
    assert torch.equal(given, read)
    segmentor = build("corrclip_v2", tiny_clip, tiny_vocabulary, vfm=str(tmp_path), **options)
    with pytest.raises(ob.OvssError, match=r"90 x 131.*ob\.image_key"):
        ob.segment(segmentor, rgb_image(10, 90, 131))
    with pytest.raises(ob.OvssError, match="whole images"):
        ob.segment(build("proxyclip", tiny_clip, tiny_vocabulary, vfm=str(tmp_path), **options), image)


def test_features_of_the_whole_image_are_seen_once(tiny_clip, tiny_vocabulary):
    shapes = []

    def whole(batch):
        shapes.append(tuple(batch.pixels.shape))
        return vfm(batch)

    options = {"short_side": 100, "window": 64, "stride": 32, "pad_multiple": None}
    segmentor = build("corrclip_v2", tiny_clip, tiny_vocabulary, vfm=whole, **options)
    ob.segment(segmentor, rgb_image(10, 90, 130))
    assert shapes == [(1, 3, 90, 130)]


@pytest.mark.parametrize(
    "change",
    [
        {"keys": torch.ones(3)},
        {"values": torch.ones(2, 4, 1)},
        {"keys": torch.ones(2, 3, dtype=torch.int8)},
        {"values": torch.full((2, 4), torch.nan)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_banks_of_other_tensors_are_refused(change, tmp_path):
    torch.save({"keys": torch.ones(2, 3), "values": torch.ones(2, 4)} | change, tmp_path / "bank.pt")
    with pytest.raises(ob.OvssError, match=f"the {next(iter(change))} of a region bank are .*expected finite numbers"):
        load_bank(tmp_path / "bank.pt")


def test_banks_of_other_encoders_are_refused(tiny_vocabulary):
    bank = ob.RegionBank(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ob.OvssError, match=r"keys of the region bank have 3 channels.*5"):
        bank.search(torch.ones(1, 5), 1)
    with pytest.raises(ob.OvssError, match=r"values of the region bank have 4 channels.*6"):
        bank.cosines(torch.zeros(1, 1, dtype=torch.long), torch.ones(2, 6), tiny_vocabulary)
