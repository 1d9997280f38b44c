"""SegEarth-OV3 (arXiv 2512.08730): both heads of SAM 3, joined pixel by pixel, and gated by presence."""

from ..config.registry import SEGMENTORS
from .concepts import ConceptSegmentor


@SEGMENTORS.register_module(name="segearth_ov3")
class SegEarthOV3(ConceptSegmentor):
    """The map of a prompt is the maximum of its instance masks, each times its score, and its semantic mask (dual-head fusion),
    times the presence of the prompt (presence-guided filtering). As in the official code, instances carry presence twice: in
    their score and in this factor."""

    heads, mask_form, instance_weight, combine, gate = "both", "probability", "score", "max", "class"
