"""NewMethod: describe it here, and name its paper."""

from torch import Tensor

import ovss_bench as ob


@ob.SEGMENTORS.register_module(name="new_method")
class NewMethod(ob.LastBlockSegmentor):
    """Patches attend to patches of similar value. Annotated attributes are hyperparameters (recipe.sharpness=3 changes one).

    A method that does more overrides `last_block`, `patch_logits` or other hooks (docs/extending.md).
    """

    residual: bool = False  # of the last block, as most methods have it
    sharpness: float = 2.0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries, keys and values (B, heads, T, d) of CLIP's last block, class token first -> the outputs of its heads."""
        return ob.attend(v, v, v, scale=self.sharpness * v.shape[-1] ** -0.5)
