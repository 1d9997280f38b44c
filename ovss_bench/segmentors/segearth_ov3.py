"""SegEarth-OV3 (arXiv 2512.08730): both heads of SAM 3, joined pixel by pixel, and gated by presence."""

from ..config.registry import SEGMENTORS
from .concepts import ConceptSegmentor


@SEGMENTORS.register_module(name="segearth_ov3")
class SegEarthOV3(ConceptSegmentor):
    """The map of a prompt: the maximum of its instances' masks, each times its score, and its semantic mask (dual-head fusion);
    times the presence of the prompt (presence-guided filtering). So instances carry presence twice, as in the official code:
    in their score, and in this factor."""

    heads, mask_form, instance_weight, combine, gate = "both", "probability", "score", "max", "class"
