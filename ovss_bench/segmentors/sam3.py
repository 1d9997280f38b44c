"""SAM 3 (Carion et al., ICLR 2026, arXiv 2511.16719) as a semantic segmentor: every class name is a prompt, and options say how
the results are joined."""

from __future__ import annotations

from typing import Literal

from ..config.recipe import Recipe
from ..config.registry import SEGMENTORS
from ..errors import OvssError
from .concepts import ConceptSegmentor


@SEGMENTORS.register_module(name="sam3")
class SAM3(ConceptSegmentor):
    """SAM 3 does not relate one phrase to another. Papers that report it join its results in different ways, by these options.

    `heads`: instance masks, the semantic mask, or the maximum of both. `upsample`: enlarge the logits, then apply the sigmoid
    (official processor), or the reverse (transformers). `top_instances`: the number of instances of a prompt to keep, by object
    logits before presence; 0: all. `mask_form`: probabilities, or 1 where they exceed 0.5. `instance_weight`: multiply masks by
    their score, which includes presence. `combine`: `max` over instances and prompts; `paint`: later prompts cover earlier
    ones; `sum` over instances, maximum over prompts. `gate`: multiply the whole map or the semantic map by presence.
    `half_maps`: round maps to float16.
    """

    heads: Literal["instance", "semantic", "both"] = "instance"
    upsample: Literal["logits", "probability"] = "logits"
    top_instances: int = 0
    mask_form: Literal["probability", "binary"] = "probability"
    instance_weight: Literal["none", "score"] = "none"
    combine: Literal["max", "paint", "sum"] = "max"
    gate: Literal["none", "class", "semantic"] = "none"
    half_maps: bool = False

    @classmethod
    def check(cls, recipe: Recipe, has_background: bool) -> None:
        super().check(recipe, has_background)
        values = recipe.hyperparameters
        if values["top_instances"] < 0:
            raise OvssError(f"top_instances={values['top_instances']}: expected a number of instances, or 0 for all.")
        if values["combine"] == "paint" and (values["heads"], values["mask_form"]) != ("instance", "binary"):
            raise OvssError("combine=paint covers pixels with binary masks: it needs heads=instance and mask_form=binary.")
