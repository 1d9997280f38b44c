"""The methods that the benchmark measures, known without importing torch."""

from ..config.recipe import hyperparameters
from ..config.registry import SEGMENTORS


def measured_methods() -> list[str]:
    """The registered methods with a case: those on CLIP or on a concept segmenter."""
    return [name for name in sorted(SEGMENTORS.names) if hyperparameters(name)[1].uses_clip or on_concepts(name)]


def on_concepts(segmentor: str) -> bool:
    """Whether a method uses a concept segmenter instead of CLIP."""
    return "concepts" in hyperparameters(segmentor)[1].defaults
