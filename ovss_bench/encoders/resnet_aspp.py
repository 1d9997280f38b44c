"""The target network of MaskCLIP+ (Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071, section 3.4): mmsegmentation's DeepLab with a
dilated ResNet-V1c, whose classifier consists of text features. Parts are named as in the checkpoints.

Shapes: B images, D channels of the texts, (h, w) the grid at an eighth of the image.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from .checkpoints import shared, weight_errors
from .trained import Shape, read_trained

DILATIONS = (6, 12, 18, 24)  # DeepLabv2's head
SEPARABLE_DILATIONS = (1, 12, 24, 36)  # DeepLabv3+'s head at output stride 8
EXPANSION = 4  # output channels of a bottleneck block divided by its inner channels


def conv_norm(inner: int, outer: int, size: int = 1, dilation: int = 1, name: str = "conv", **options: int) -> nn.Sequential:
    """A convolution without bias, batch normalisation and ReLU, as mmcv's ConvModule names them."""
    padding = dilation * (size // 2)
    conv = nn.Conv2d(inner, outer, size, padding=padding, dilation=dilation, bias=False, **options)
    return nn.Sequential(OrderedDict({name: conv, "bn": nn.BatchNorm2d(outer), "activate": nn.ReLU()}))


def separable(inner: int, outer: int, dilation: int) -> nn.Sequential:
    """mmcv's depthwise separable convolution: 3 x 3 for each channel, then 1 x 1."""
    parts = {"depthwise_conv": conv_norm(inner, inner, 3, dilation, groups=inner), "pointwise_conv": conv_norm(inner, outer)}
    return nn.Sequential(OrderedDict(parts))


class ResNetV1c(nn.Module):
    """A ResNet with a stem of three 3 x 3 convolutions and stages with strides 1, 2, 1, 1 and dilations 1, 1, 2, 4: an output
    stride of 8. The first block of a dilated stage has half its dilation (`contract_dilation`). `width`: channels of the stem's
    output, 64 in all published models. The stride is in the 3 x 3 convolutions (PyTorch's style), as in torchvision."""

    def __init__(self, blocks: tuple[int, ...], width: int, stem: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer, stride in ((3, stem, 2), (stem, stem, 1), (stem, width, 1)):
            layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        self.stem, self.maxpool = nn.Sequential(*layers), nn.MaxPool2d(3, 2, 1)
        inner = width
        for stage, count in enumerate(blocks):
            planes, stride, dilation = width * 2**stage, (1, 2, 1, 1)[stage], (1, 1, 2, 4)[stage]
            self.add_module(f"layer{stage + 1}", _stage(inner, planes, count, stride, dilation))
            inner = planes * EXPANSION
        self.channels = inner

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the outputs of the first stage, at a quarter of the size, and of the last, at an eighth."""
        first = self.layer1(self.maxpool(self.stem(pixels)))
        return first, self.layer4(self.layer3(self.layer2(first)))


def _stage(inner: int, planes: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    outer, blocks = planes * EXPANSION, []
    for number in range(count):
        first = number == 0
        skip = None
        if first:
            skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        contracted = dilation // 2 if first and dilation > 1 else dilation
        blocks.append(Bottleneck(inner if first else outer, planes, stride if first else 1, skip, dilation=contracted))
    return nn.Sequential(*blocks)


class SummedASPP(nn.Module):
    """DeepLabv2's head: four dilated 3 x 3 convolutions, summed, each after batch normalisation and ReLU."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(conv_norm(inner, outer, 3, dilation) for dilation in DILATIONS)

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        return torch.stack([branch(last) for branch in self.aspp_modules]).sum(0)


class SeparableASPP(nn.Module):
    """DeepLabv3+'s head: the mean of the image and four branches, concatenated, with details from the first stage."""

    def __init__(self, inner: int, outer: int, first: int, detail: int) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(inner, outer))
        one, *dilated = SEPARABLE_DILATIONS
        branches = [conv_norm(inner, outer, 1, one), *(separable(inner, outer, dilation) for dilation in dilated)]
        self.aspp_modules = nn.ModuleList(branches)
        self.bottleneck = conv_norm(5 * outer, outer, 3)
        self.c1_bottleneck = conv_norm(first, detail)
        self.sep_bottleneck = nn.Sequential(separable(outer + detail, outer, 1), separable(outer, outer, 1))

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        mean = self.image_pool(last).expand(-1, -1, *last.shape[2:])
        x = self.bottleneck(torch.cat([mean, *(branch(last) for branch in self.aspp_modules)], 1))
        details = self.c1_bottleneck(first)
        x = F.interpolate(x, details.shape[2:], mode="bilinear")
        return self.sep_bottleneck(torch.cat([x, details], 1))


class DeepLab(nn.Module):
    """Backbone, head and classifier, under the names of the checkpoints: text features (K, D), and a learned background (1, D),
    or (0, D) without one."""

    def __init__(self, backbone: ResNetV1c, decode_module: nn.Module, texts: Tensor, background: Tensor) -> None:
        super().__init__()
        self.backbone, self.decode_head = backbone, nn.Module()
        self.decode_head.decode_module = decode_module
        self.decode_head.text_embeddings = nn.Parameter(texts)
        self.decode_head.bg_embeddings = nn.Parameter(background)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> features (B, D, h, w) in the space of the texts, not normalised."""
        return self.decode_head.decode_module(*self.backbone(pixels))


def _conv(name: str, inner: int | str, outer: str, size: int, norm: str) -> dict[str, Shape]:
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": (outer, inner, size, size)} | {f"{norm}.{kind}": (outer,) for kind in statistics}


def _module(name: str, inner: int | str, outer: str, size: int = 1) -> dict[str, Shape]:
    return _conv(f"{name}.conv", inner, outer, size, f"{name}.bn")


def _separable(name: str, inner: str, outer: str) -> dict[str, Shape]:
    return _module(f"{name}.depthwise_conv", 1, inner, 3) | _module(f"{name}.pointwise_conv", inner, outer)


def _backbone() -> dict[str, Shape]:
    """Shapes with the stem's inner width S and its outer width W."""
    shapes = (
        _conv("stem.0", 3, "S", 3, "stem.1") | _conv("stem.3", "S", "S", 3, "stem.4") | _conv("stem.6", "S", "W", 3, "stem.7")
    )
    for stage, (planes, outer, inner) in enumerate(zip((1, 2, 4, 8), (4, 8, 16, 32), (1, 4, 8, 16), strict=True), 1):
        block, first = f"layer{stage}.*", f"layer{stage}.0"
        shapes |= _conv(f"{block}.conv1", f"{outer}W", f"{planes}W", 1, f"{block}.bn1")
        shapes |= _conv(f"{block}.conv2", f"{planes}W", f"{planes}W", 3, f"{block}.bn2")
        shapes |= _conv(f"{block}.conv3", f"{planes}W", f"{outer}W", 1, f"{block}.bn3")
        shapes |= {f"{first}.conv1.weight": (f"{planes}W", f"{inner}W", 1, 1)}  # instead of the shape in other blocks
        shapes |= _conv(f"{first}.downsample.0", f"{inner}W", f"{outer}W", 1, f"{first}.downsample.1")
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def _head(with_details: bool) -> dict[str, Shape]:
    """Shapes with the width D of the texts, C channels of details and G = D + C."""
    if not with_details:
        parts = [_module(f"aspp_modules.{i}", "32W", "D", 3) for i in range(4)]
    else:
        parts = [_module("image_pool.1", "32W", "D"), _module("aspp_modules.0", "32W", "D")]
        parts += [_separable(f"aspp_modules.{i}", "32W", "D") for i in (1, 2, 3)]
        parts += [_module("bottleneck", "5D", "D", 3), _module("c1_bottleneck", "4W", "C")]
        parts += [_separable("sep_bottleneck.0", "G", "D"), _separable("sep_bottleneck.1", "D", "D")]
    return {f"decode_head.decode_module.{name}": shape for part in parts for name, shape in part.items()}


def _shapes(names: Iterable[str]) -> dict[str, Shape]:
    with_details = any("c1_bottleneck" in name for name in names)
    return _backbone() | _head(with_details) | {"decode_head.text_embeddings": ("K", "D")}


# The teacher, and training counters.
UNUSED = ("decode_head.clip.*", "decode_head.proj.weight", "decode_head.[qkvc]_proj.*", "decode_head._iter_counter")
UNUSED += ("*.num_batches_tracked",)


@shared
def load_deeplab(path: str, device: str = "cpu") -> DeepLab:
    """The network of a MaskCLIP+ checkpoint. Its tensors determine whether the head is DeepLabv2's or v3+'s, and the ResNet's
    depth: configurations of ViT teachers call a ResNet-50 a ResNet-101. Raises OvssError for other tensors."""
    state, sizes = read_trained(path, _shapes, optional=[{"decode_head.bg_embeddings": (1, "D")}], ignorable=UNUSED)
    texts = state["decode_head.text_embeddings"]
    background = state.setdefault("decode_head.bg_embeddings", texts[:0])
    with weight_errors(f"checkpoint {path}"):
        with torch.device("meta"):
            backbone = ResNetV1c(tuple(sizes[f"backbone.layer{stage}.*"] for stage in (1, 2, 3, 4)), sizes["W"], sizes["S"])
            head = SummedASPP(backbone.channels, sizes["D"])
            if "C" in sizes:
                head = SeparableASPP(backbone.channels, sizes["D"], sizes["W"] * EXPANSION, sizes["C"])
        network = DeepLab(backbone, head, texts, background)
        counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
        network.load_state_dict(state | counters, assign=True)
    return network.eval().requires_grad_(False).to(device)
