"""Step: a part of one method that can be added to others, and the stages at which steps act.

A step overrides the hook of its stage and begins with `super().HOOK(...)`, which runs the base method and earlier steps. Its
annotated class attributes become hyperparameters of the segmentor, so no method may have the same names, except those of
auxiliary models, which are shared."""

from __future__ import annotations

from torch import Tensor

from ...config.recipe import Recipe
from ...errors import OvssError
from ...types import ImageContext
from ..base import Segmentor


class Step(Segmentor):
    """The base class of steps. Derive a step from its stage: TextStep, WindowStep, PixelStep, ScoreStep or LabelStep."""

    option = "refine"  # the option that adds the step, this or "text"
    place = 0  # of the stage, in the order in which stages run

    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        """The reason why the step makes no sense with a base method, or None."""
        if base.outside:
            return "the label maps come from outside, and no step of this project sees how they are made"
        return None


class _InWindows(Step):
    @classmethod
    def refusal(cls, base: type[Segmentor]) -> str | None:
        if base.image_scores:
            return "the method scores whole images, and the step acts on the cosines of windows"
        return super().refusal(base)


class WindowStep(_InWindows):
    """Acts on windows: define `patch_logits`, and call `super().patch_logits(batch)` for the cosines (B, Q, h, w) of this or a
    changed batch. If the base method takes all windows of an image together, so does the step."""

    place = 2


class TextStep(WindowStep):
    """Acts on the text features: override `text` or `encode_text`, and `patch_logits` to join several classifiers."""

    option, place = "text", 1


class PixelStep(_InWindows):
    """Acts on the cosines (Q, H, W) of the whole image at the size of the result: define `refine`, and begin with
    `super().refine(cosines, context)`."""

    place = 3

    @property
    def refines(self) -> bool:
        return True

    def refine(self, cosines: Tensor, context: ImageContext) -> Tensor:
        base = super()
        return base.refine(cosines, context) if base.refine and base.refines else cosines


class ScoreStep(Step):
    """Acts on the planes (P, H, W) to decide on: define `refine_scores`, and begin with
    `super().refine_scores(planes, context)`."""

    place = 4

    def refine_scores(self, planes: Tensor, context: ImageContext) -> Tensor:
        base = super().refine_scores
        return base(planes, context) if base else planes


class LabelStep(Step):
    """Acts on the label map (H, W): define `correct`, and begin with `super().correct(label_map, context)`."""

    place = 5

    def correct(self, label_map: Tensor, context: ImageContext) -> Tensor:
        base = super().correct
        return base(label_map, context) if base else label_map


def refuse_repetition(recipe: Recipe, step: str, name: str, does: str) -> None:
    """Raises OvssError if the base method itself does what the step does, as its hyperparameter `name` says."""
    if recipe.hyperparameters.get(name):
        hint = f"Leave {step} out, or set {name}=false."
        raise OvssError(f"{recipe.segmentor}: the base method {does} already. {hint}")
