"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) of texts in the last block of CLIP, as in CLIP-ES."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Trunk
from .clip import DenseCLIP


def grad_cam(clip: DenseCLIP, trunk: Trunk, text: Tensor, scale: float, count: int) -> Tensor:
    """Maps (count, h, w) >= 0 of one image for the first `count` of the text features (n, E): the normalised input of the last
    block's attention, its channels weighted by the gradient of the text's probability, averaged over the patches.

    The probabilities are the softmax of `scale` times the cosines between all texts and the mean embedding of the patches.
    """
    with torch.inference_mode(False), torch.enable_grad():
        block = clip.block(-1, trunk.grid)
        x, text = trunk.tokens.clone(), text.clone()  # tensors of inference mode have no gradients
        activations = block.ln_1(x).requires_grad_()
        x = x + block.project(F.scaled_dot_product_attention(*block.qkv(activations)))
        x = x + block.mlp(block.ln_2(x))
        patches = clip.project(x).float().narrow(1, 1, x.shape[1] - 1)
        probabilities = (scale * F.normalize(patches.mean(1), dim=-1) @ text.T).softmax(1).sum(0).unbind()
        gradients = [torch.autograd.grad(one, activations, retain_graph=True)[0] for one in probabilities[:count]]
    weights = torch.cat(gradients).float()[:, 1:].mean(1)
    return (weights @ activations.detach()[0, 1:].float().T).clamp(min=0).unflatten(1, trunk.grid)
