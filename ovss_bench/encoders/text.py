"""CLIP's text tower for many short prompts, without most of the padding to 77 tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OvssError
from ..files import read_json

TEXT_TOKENS = {"cpu": 2560, "cuda": 65536}  # in one forward pass


def text_tower(model: nn.Module) -> nn.Module:
    """The module of a model that holds the text tower: `text`, or the model itself."""
    return getattr(model, "text", model)


def encode_tokens(model: nn.Module, tokens: Tensor, device: torch.device, advance: Callable[[int], None]) -> Tensor:
    """Unit text embeddings (N, E) float32 of an open_clip model for tokenised prompts (N, L). `advance` is called with the
    number of prompts encoded by each pass.

    Equal prompts are encoded once. If attention is causal and the embedding is that of the end-of-text token, the padding
    after it is left out, which changes rounding only; prompts of similar length share a pass.
    """
    tokens, places = tokens.unique(dim=0, return_inverse=True)
    repeats = places.bincount(minlength=len(tokens))
    ends = _ends(text_tower(model), tokens)
    lengths = torch.full((len(tokens),), tokens.shape[1]) if ends is None else ends + 1
    order, first = lengths.argsort(descending=True, stable=True), 0
    parts: list[Tensor] = []
    while first < len(order):
        length = int(lengths[order[first]])
        rows = order[first : first + max(TEXT_TOKENS[device.type] // length, 1)]
        first += len(rows)
        batch = tokens[rows, :length].to(device)
        encoded = model.encode_text(batch) if ends is None else _encode_cut(text_tower(model), batch, ends[rows].to(device))
        parts.append(F.normalize(encoded.float(), dim=-1))
        advance(int(repeats[rows].sum()))
    return torch.cat(parts)[order.argsort()[places].to(device)]


def _ends(tower: nn.Module, tokens: Tensor) -> Tensor | None:
    """The positions (N,) of the tokens whose embedding is used, or None if tokens after them may influence it."""
    mask, pool = getattr(tower, "attn_mask", None), getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = isinstance(mask, Tensor) and mask.ndim == 2 and torch.equal(mask.isinf(), torch.ones_like(mask).triu(1).bool())
    if not causal or getattr(tower, "cls_emb", None) is not None:
        return None
    if pool == "eos":
        return (tokens == getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))).int().argmax(-1)
    return tokens.argmax(-1) if pool == "argmax" else None


def _encode_cut(tower: nn.Module, tokens: Tensor, ends: Tensor) -> Tensor:
    """open_clip's `encode_text` for tokens (N, L) of any length: the embeddings (N, E) at `ends`."""
    length, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    x, projection = x[torch.arange(len(x), device=x.device), ends], tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def read_sentences(option: str, path: str | Path) -> dict[str, list[str]]:
    """Sentences by name, from the JSON file given for an option. Raises OvssError for any other content."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise OvssError(f"{option}={path} cannot be read as JSON: {error}. Give a file {{name: [sentence, ...]}}.") from error
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(one, str) for one in each) for each in lists):
        raise OvssError(f"{option}={path}: expected {{name: [sentence, ...]}}, a list of texts for each name.")
    return content
