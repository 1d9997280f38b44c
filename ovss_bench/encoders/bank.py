"""RegionBank: what CLIP says of the regions of unlabelled images, found by what a vision encoder says of them (CorrCLIPv2)."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..errors import OvssError
from ..files import digest
from ..ordinary import ordinary_torch
from ..vocabulary import Vocabulary
from .checkpoints import read_weights
from .clip import DenseCLIP, load_clip, state_digest


class RegionBank:
    """`keys` (R, C): features of R regions by the vision encoder; `values` (R, E): by the CLIP of the segmentor; `aux_values`
    (R, F): by another CLIP, whose text features of the queries are `aux_vocabulary` (a Vocabulary made from features, a tensor
    (Q, F), or that CLIP itself, which then encodes the segmentor's queries). Rows are normalised. Search is exact.

    Raises OvssError where the numbers of rows differ, or auxiliary values come without their vocabulary.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        aux_values: Tensor | None = None,
        aux_vocabulary: Vocabulary | Tensor | DenseCLIP | None = None,
    ) -> None:
        rows = {len(part) for part in (keys, values, aux_values) if part is not None}
        if len(rows) != 1 or 0 in rows:
            raise OvssError(f"a region bank needs as many keys as values, and at least one; these have {sorted(rows)} rows.")
        if (aux_values is None) != (aux_vocabulary is None):
            raise OvssError("aux_values and aux_vocabulary of a region bank go together: give both or none.")
        self.keys, self.values = F.normalize(keys.float(), dim=-1), F.normalize(values.float(), dim=-1)
        self.aux_values = None if aux_values is None else F.normalize(aux_values.float(), dim=-1)
        self.aux_vocabulary = aux_vocabulary
        tensors = {"keys": self.keys, "values": self.values}
        own = aux_vocabulary
        if aux_values is not None:
            tensors |= {"aux_values": self.aux_values} | ({"aux_vocabulary": own} if isinstance(own, Tensor) else {})
        named = own.weights_digest if isinstance(own, DenseCLIP) else own.digest if isinstance(own, Vocabulary) else ""
        self.digest = digest(state_digest(tensors), named)

    def search(self, keys: Tensor, count: int) -> Tensor:
        """The numbers (N, count) of the regions whose keys are most like each of `keys` (N, C), best first."""
        return (keys.to(self.keys) @ self.keys.T).topk(min(count, len(self.keys)), dim=-1).indices

    def cosines(self, found: Tensor, text: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Found regions (N, count) -> cosines (Q, N) of their mean values with the queries, averaged over both CLIPs."""
        cosines = text.to(self.values) @ F.normalize(self.values[found].mean(1), dim=-1).T
        if self.aux_values is None:
            return cosines.to(text)
        own = self.aux_vocabulary
        if isinstance(own, Vocabulary):
            own = own.given_features
        elif isinstance(own, DenseCLIP):
            own = vocabulary.features(own)
        aux = own.to(self.values) @ F.normalize(self.aux_values[found].mean(1), dim=-1).T
        return ((cosines + aux) / 2).to(text)


@ordinary_torch()
def load_bank(path: str | Path, device: str = "cpu") -> RegionBank:
    """A bank from a safetensors or .pt file with tensors `keys`, `values` and perhaps `aux_values`; then the metadata (or the
    entry) `aux_clip` names the CLIP of those, as `load_clip` takes it: NAME or NAME:TAG.

    The authors' FAISS indices hold compressed keys: reconstruct them (faiss: `index.reconstruct_n`) and store them so.
    """
    if not Path(path).is_file():
        raise OvssError(
            f"the region bank {path} does not exist. Give the path of a safetensors file with tensors keys, values and "
            "perhaps aux_values, or leave bank out."
        )
    tensors, metadata = read_weights(Path(path))
    missing = {"keys", "values"} - tensors.keys()
    if missing:
        raise OvssError(f"the region bank {path} lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(tensors))}.")
    aux = None
    if "aux_values" in tensors:
        if "aux_clip" not in metadata:
            raise OvssError(f"the region bank {path} has aux_values, but its metadata do not name their CLIP (aux_clip).")
        name, _, tag = str(metadata["aux_clip"]).partition(":")
        aux = load_clip(name, pretrained=tag or None, device=device)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return RegionBank(moved["keys"], moved["values"], moved.get("aux_values"), aux)
