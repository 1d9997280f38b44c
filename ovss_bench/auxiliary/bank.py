"""RegionBank: CLIP embeddings of regions in unlabelled images, retrieved by features of a vision encoder (CorrCLIPv2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..encoders.checkpoints import read_weights, state_digest, weight_errors
from ..encoders.clip import DenseCLIP
from ..encoders.clip_loading import load_spec
from ..encoders.clip_spec import ClipSpec
from ..errors import OvssError
from ..files import digest, user_path
from ..progress import Progress
from ..torch_defaults import ordinary_torch
from ..vocabulary import Vocabulary


class RegionBank:
    """`keys` (R, C): features of R regions by the vision encoder; `values` (R, E): by the segmentor's CLIP; `aux_values`
    (R, F): by another CLIP, whose text features of the queries come from `aux_vocabulary`: a tensor (Q, F), a Vocabulary made
    from features, or that CLIP itself, which encodes the segmentor's queries. Rows are normalised; the search is exact.

    `images`: the names of the image files that the regions come from, if known; results state how many of them are evaluated.

    Raises OvssError if the numbers of rows differ, or auxiliary values come without their vocabulary.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        aux_values: Tensor | None = None,
        aux_vocabulary: Vocabulary | Tensor | DenseCLIP | None = None,
        images: Sequence[str] = (),
    ) -> None:
        given = {"keys": keys, "values": values, "aux_values": aux_values}
        given = {name: part for name, part in given.items() if part is not None}
        for name, part in given.items():
            if part.ndim != 2 or not part.is_floating_point() or not part.isfinite().all():
                what = f"the {name} of a region bank are {part.dtype} of the shape {tuple(part.shape)}, or hold NaN or infinity"
                raise OvssError(f"{what}; expected finite numbers, a row for each region.")
        rows = {len(part) for part in given.values()}
        if len(rows) != 1 or 0 in rows:
            raise OvssError(f"a region bank needs as many keys as values, and at least one; these have {sorted(rows)} rows.")
        if (aux_values is None) != (aux_vocabulary is None):
            raise OvssError("aux_values and aux_vocabulary of a region bank go together: give both or none.")
        tensors = {name: F.normalize(part.float(), dim=-1) for name, part in given.items()}
        self.keys, self.values, self.aux_values = tensors["keys"], tensors["values"], tensors.get("aux_values")
        self.aux_vocabulary = aux = aux_vocabulary
        self.images = tuple(images)
        tensors |= {"aux_vocabulary": aux} if isinstance(aux, Tensor) else {}
        named = aux.weights_digest if isinstance(aux, DenseCLIP) else aux.digest if isinstance(aux, Vocabulary) else ""
        self.digest = digest(state_digest(tensors), named)
        self._aux_texts: dict[str, Tensor] = {}

    def encode_text(self, vocabulary: Vocabulary, progress: Progress | None = None) -> Any:
        """Text features (Q, F) for the auxiliary values, None without these. A CLIP encodes a vocabulary once."""
        aux = self.aux_vocabulary
        if not isinstance(aux, DenseCLIP):
            return aux.given_features if isinstance(aux, Vocabulary) else aux
        if vocabulary.digest not in self._aux_texts:
            self._aux_texts[vocabulary.digest] = vocabulary.features(aux, progress)
        return self._aux_texts[vocabulary.digest]

    def search(self, keys: Tensor, count: int) -> Tensor:
        """Indices (N, count) of the regions whose keys are most similar to each of `keys` (N, C), best first."""
        if keys.shape[1] != self.keys.shape[1]:
            what = f"the keys of the region bank have {self.keys.shape[1]} channels"
            hint = "Use the encoder that the bank was made with."
            raise OvssError(f"{what}, the features of the vision encoder {keys.shape[1]}. {hint}")
        return (keys.to(self.keys) @ self.keys.T).topk(min(count, len(self.keys)), dim=-1).indices

    def cosines(self, found: Tensor, text: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Retrieved regions (N, count) -> cosines (Q, N) of their mean values with the queries, averaged over both CLIPs."""
        cosines = _compare(text, self.values, found)
        if self.aux_values is not None:
            cosines = (cosines + _compare(self.encode_text(vocabulary), self.aux_values, found)) / 2
        return cosines.to(text)


def _compare(text: Tensor, values: Tensor, found: Tensor) -> Tensor:
    """Cosines (Q, N) of texts (Q, E) with the mean values of retrieved regions (N, count)."""
    if text.shape[1] != values.shape[1]:
        what = f"the values of the region bank have {values.shape[1]} channels, the text features {text.shape[1]}"
        raise OvssError(f"{what}. Use the CLIP that the bank was made with.")
    return text.to(values) @ F.normalize(values[found].mean(1), dim=-1).T


def find_bank(path: str | Path) -> Path:
    """The path of a bank. Raises OvssError if the file does not exist."""
    file = user_path(path)
    if not file.is_file():
        hint = "Give the path of a safetensors file with tensors keys, values and optionally aux_values, or leave bank out."
        raise OvssError(f"the region bank {path} does not exist. {hint}")
    return file


@ordinary_torch()
def load_bank(path: str | Path, device: str = "cpu") -> RegionBank:
    """A bank from a safetensors or .pt file with tensors `keys`, `values` and optionally `aux_values`. For the latter, the
    metadata entry `aux_clip` names their CLIP in the form of `clip=`: NAME or NAME:TAG. The metadata entry `images` may list
    the image files of the regions, one per line or as a JSON list.

    The authors' FAISS indices hold compressed keys: reconstruct these (`index.reconstruct_n`) and store the result.
    """
    tensors, metadata = read_weights(find_bank(path))
    if missing := {"keys", "values"} - tensors.keys():
        raise OvssError(f"the region bank {path} lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(tensors))}.")
    aux = None
    if "aux_values" in tensors:
        if "aux_clip" not in metadata:
            raise OvssError(f"the region bank {path} has aux_values, but its metadata does not name their CLIP (aux_clip).")
        aux = load_spec(ClipSpec.of(metadata["aux_clip"]), device=device)
    images = metadata.get("images", ())
    images = images.split("\n") if isinstance(images, str) else [str(name) for name in images]
    parts = {name: tensors[name].to(device) for name in ("keys", "values", "aux_values") if name in tensors}
    with weight_errors(f"the region bank {path} cannot be used"):
        return RegionBank(**parts, aux_vocabulary=aux, images=images)
