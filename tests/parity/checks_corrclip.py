"""CorrCLIP with a tiny DINO and seeded regions, and CorrCLIPv2 with stand-in features and banks."""

import torch
import torch.nn.functional as F
from torch import Tensor

import ovss_bench as ob
from ovss_bench.ops.nearest import torch_nearest

from . import seeded
from .checks_proxyclip import dino, pipeline_options, post_label_map, region_map
from .common import build
from .reference import Reference

METHODS = ("corrclip", "corrclip_v2")


def segmentor(reference: Reference, array: str) -> ob.Segmentor:
    options = {"regions": region_map(reference)}
    if reference.method == "corrclip":
        constants = reference.info["constants"]
        options |= {"tau": float(constants["TAU"]), "alpha": constants["ALPHA"], "beta": constants["BETA"]}
        options |= {"merge_eps": constants["DBSCAN_eps"], "pad_multiple": reference.info["pipeline"]["pad_multiple"]}
        vfm = (lambda batch: standin_features(reference)) if array.startswith("standin") else dino(reference, "q+k")
        return build(reference, array, vfm=vfm, **options)

    def features(batch: ob.WindowBatch) -> Tensor:
        size = batch.pixels.shape[2:] if array.endswith("_logits") else (10, 13)
        return seeded.feature_map(reference.seed("vfm", 41), 32, *size)

    options["vfm"] = features
    if not array.endswith(("_logits", "no_bank")):
        about = reference.info["bank"]
        options |= {"bank": bank(reference), "num_support": about["num_support"], "support": about["alpha"]}
    return build(reference, array, **options)


def bank(reference: Reference) -> ob.RegionBank:
    return ob.RegionBank(
        keys=seeded.query_features(reference.seed("bank_keys", 45), 40, 32),
        values=seeded.query_features(reference.seed("bank_values", 43), 40),
        aux_values=seeded.query_features(reference.seed("bank_aux_values", 44), 40),
        aux_vocabulary=seeded.query_features(reference.seed("aux_queries", 32), reference.case["queries"]),
    )


def window_logits(reference: Reference, array: str) -> Tensor:
    pixels = reference.pixels("rect" if array.startswith("rect") else "square")
    return segmentor(reference, array).patch_logits(ob.WindowBatch(pixels))[0]


def standin_features(reference: Reference) -> Tensor:
    height, width = (side // 8 for side in reference.case["square"])
    return F.normalize(seeded.feature_map(reference.seed("vfm", 41), 32, height, width) + 0.7, dim=1)


def merged_masks(reference: Reference, array: str) -> Tensor:
    features = standin_features(reference)
    regions = torch.from_numpy(region_map(reference)(reference.pixels("square")[0].permute(1, 2, 0)))
    return segmentor(reference, array).merge(features[0].flatten(1).T, torch_nearest(regions, features.shape[2:]))


def prediction(reference: Reference, array: str) -> ob.Prediction:
    return ob.segment(segmentor(reference, array), reference.image, **pipeline_options(reference))


def retrieved_ids(reference: Reference, array: str) -> Tensor:
    own = segmentor(reference, array)
    own = own.with_recipe(own.recipe.override(short_side=reference.case["short_side"]))
    return own.retrieve(ob.make_context(reference.image, own))[1]


CHECKS = [
    ("(square|rect|standin)_logits", window_logits, (1e-5, 0)),
    ("standin_merged_masks", merged_masks, None),
    ("retrieved_ids", retrieved_ids, None),
    ("label_map", lambda reference, array: prediction(reference, array).label_map, 0.999),
    ("final_scores.*", lambda reference, array: prediction(reference, array).scores, (1e-3, 0)),
    ("post_label_map", post_label_map, 0.999),
]
