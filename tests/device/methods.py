"""What the tests of all methods on the shadow GPU share: the methods with their branches, and runs on either device."""

import torch

import ovss_bench as ob
from device.shadow import REAL
from ovss_bench.files import load_config
from ovss_bench.inference.engine import predict
from parity.seeded import query_features, rgb_image
from stand_ins import METHODS as METHODS
from stand_ins import PRESETS, STEPS, method_of, needs_of, sources_of

PRECISIONS = ("fp32", "fp16", "bf16")
SMALL = {"short_side": 80, "window": 64, "stride": 32, "pad_multiple": None, "scored_at": "original", "pamr_steps": 0}
# Values that lead to other code than the defaults.
BRANCHES = {
    "maskclip": [{"prompt_denoising": 0.1, "key_smoothing": 0.5}],
    "naclip": [{"strategy": "nonly"}],
    "gem": [{"temperature": 2.0, "min_max": True}],
    "resclip": [{"strategy": "sclip", "delete_same_entity": False}, {"use_sfr": False}, {"sfr_pamr_steps": 0}],
    "scclip": [{"multi_level": False, "calibrate": False}],
    "rf_clip": [{"channels": (2, 40), "sigma": 1.5, "strategy": "refocus"}, {"image_level": "window"}],
    "sfp": [{"detector": "lof"}, {"detector": "norm", "multi_level": False}, {"purify": False}],
    "lposs": [{"pixel_refine": True}, {"k": 20, "pix_dist_pow": 2.0}],
    "pearl": [{"strategy": "vanilla"}, {"align_solver": "svd", "grid": 7}, {"tlp": False}],
    "proxyclip": [{"empty_rows": "diagonal"}, {"masking": False, "normalisation": False}],
    "corrclip": [{"scope": False, "beta": 0.0}, {"merge_eps": 0.0}],
    "corrclip_v2": [{"merge_eps": 0.2}],
    "trident": [{"halves": True, "refine_neg_cos": False, "coarse_thresh": 0.0, "minimal_area": 9}, {"sam": None}],
    "lavg": [{"regions": None, "cut_side": 64}, {"regions": None, "cut_side": 48, "crf": False, "clear_background": True}],
    "cass": [{"whole_image": False, "stretch": False}],
    "cliptrase": [{"cls_weighting": True, "denoise": False}, {"vote": False}],
    "cliper": [{"diffusion": None}, {"halves": True, "bkg_thre": 0.0}, {"refinement": "mean", "window": "whole"}],
    "clip_diy": [{"foreground": None}],
    "pacl": [{"ln_post": False}],
    "gla_clip": [{"extension": False}, {"proxies": False, "dynamic_shift": False, "dynamic_scale": False}],
    "ov_stitcher": [{"beta": 0.0, "correction": False}, {"merge_eps": 0.0}],
    "clip_dinoiser": [{"apply_found": True}, {"gamma": -1.0, "feats_idx": -1}],
    "itaclip": [{"img_engineering": False}, {"img_eng_coefficient": 1.0, "closing": False}],
    "tagclip_training_free": [{"reidentify": False}, {"crf": True}],
    "sam3": [
        *(
            {k: v for k, v in load_config("segmentor", name)["recipe"].items() if k not in ("concepts", "autocast")}
            for name in PRESETS
        ),
        {"combine": "sum", "mask_form": "binary", "instance_weight": "score", "top_instances": 3, "upsample": "probability"},
    ],
    "segearth_ov3": [
        {"mirror": True, "prob_thd": 0.3},
        {"slide_crop": 64, "slide_stride": 48},
        {"early_skip": False, "geometry_token": False},
    ],
    "active_sam": [{"prob_thd": 0.2, "neighbor_tokens": 0, "hypernym_tokens": 0}, {"pruner_max_active": 8}],
}
# Every step on a method that waits for nothing; floss also on one that runs once for each classifier.
STEPPED = [*(f"sclip+{step}" for step in STEPS), "itaclip+floss"]
# A preview for images of any size.
PREVIEW = {"active_sam": {"preview_resolution": 112, "pruner_max_active": 4, "quantile_alpha": 0.5}}
# How far their scores may differ, labels not at all. Logits as fine as the pixels: sums over a GPU's tiles in another order.
FINE = {"segearth_ov": 1e-6, "tagclip": 1e-6}
# On a GPU the attention of all regions is one product, of OV-Stitcher with values in half precision as well.
FINE |= {"corrclip": 1e-6, "corrclip_v2": 1e-6, "ov_stitcher": 5e-4}
DECISIONS = [
    {"threshold": 0.3, "pamr_steps": 2, "pamr_dilations": (1, 2)},
    {"area_threshold": 0.1, "threshold": 0.0},
]


def branches(name):
    """The values to run a method with: its branches, and the decisions that it leaves to the recipe."""
    if name in STEPPED:
        return [{}]
    unused = ob.SEGMENTORS.get(name).unused()
    decisions = [{key: value for key, value in values.items() if key not in unused} for values in DECISIONS]
    return [{}, *(values for values in [*decisions, *BRANCHES.get(name, [])] if values)]


def vocabulary():
    """Eight queries of four classes, the first of which is the background; the last query is a distractor."""
    return ob.Vocabulary.from_features(query_features(31, 8, 32), [0, 0, 0, 1, 2, 2, 3, -1], background=True)


def build(name, clip, **values):
    """A method, maybe with steps, and the stand-ins for its sources, for a CLIP of any precision; None for a source leaves it
    out."""
    base, *steps = name.split("+")
    crop = {"resize": "keep_ratio"} if ob.compose_recipe(name).resize == "center_crop" else {}
    used = {key: value for key, value in SMALL.items() if key not in ob.SEGMENTORS.get(base).unused()}
    sources = {key: value for step in steps for key, value in needs_of(step).items()} | sources_of(base, 32)
    if "diffusion" in sources:  # an alternative of it
        sources.pop("vfm" if values.get("diffusion", "given") else "diffusion")
    missing = [kind for kind in ("foreground", "regions", "sam") if values.get(kind, "given") is None]
    values = {key: value for key, value in values.items() if key not in (*sources, *missing) or value is not None}
    sources = {kind: None if kind in missing else source for kind, source in sources.items()}
    precision = "precision" if method_of(name).uses_clip else "autocast"
    options = used | crop | sources | PREVIEW.get(name, {}) | {precision: clip.precision} | values
    return ob.build_segmentor(name, clip=clip, vocabulary=vocabulary(), **options)


def images(*sizes):
    return {f"image{n}": rgb_image(90 + n, *size) for n, size in enumerate(sizes)}


def predictions(segmentor, pictures, **options):
    """The predictions by key, without waits for them in between."""
    outcomes = list(predict([segmentor], pictures.items(), **({"batch": 4} | options)))
    for _, outcome in outcomes:
        if isinstance(outcome, ob.OvssError):
            raise outcome
    return {key: outcome[0] for key, outcome in outcomes}


def same(one, other):
    """Whether two label maps are equal; a real GPU rounds otherwise, which decides between classes at a few pixels."""
    return torch.equal(one, other) if not REAL else float((one == other).double().mean()) >= 0.98


def equal(one, other, atol=0.0):
    """Whether all predictions have the same label maps and, if kept, equal scores."""
    atol = 0.02 if REAL else atol
    pairs = [(one[key], other[key]) for key in one]
    maps = all(same(a.label_map, b.label_map) for a, b in pairs)
    scores = all(a.scores is None or torch.allclose(a.scores, b.scores, rtol=0, atol=atol) for a, b in pairs)
    return one.keys() == other.keys() and maps and scores
