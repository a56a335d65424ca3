"""Small networks of the kinds that people deploy, with random weights whose statistics are those of trained ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sequences import BERT, GPT, GRUSpeech, LSTMSpeech, SwinNet, TorchEncoder, ViT
from torch import Tensor, nn

CLASSES = 10
BATCH_NORM_PASSES = 4


def conv(inputs: int, outputs: int, kernel: int = 3, *, act: type[nn.Module] | None = nn.ReLU, **options) -> nn.Module:
    """Conv, BatchNorm and activation."""
    padding = options.pop("padding", kernel // 2)
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


def classify(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride=stride), conv(outputs, outputs, act=None))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, act=None, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        inner = max(channels // 4, 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), act(), nn.Conv2d(inner, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    """Inverted residual: expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: type[nn.Module], se: nn.Module | None) -> None:
        super().__init__()
        wide = inputs * 3
        layers = [conv(inputs, wide, 1, act=act), conv(wide, wide, act=act, stride=stride, groups=wide)]
        self.body = nn.Sequential(*layers, *([se] if se else []), conv(wide, outputs, 1, act=None))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def make_mobile(act: type[nn.Module], gate: type[nn.Module] | None) -> nn.Module:
    layers = [conv(3, 16, act=act, stride=2)]
    for inputs, outputs, stride in ((16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1)):
        inner = nn.ReLU if gate is nn.Hardsigmoid else act
        se = SqueezeExcite(inputs * 3, inner, gate) if gate else None
        layers.append(Inverted(inputs, outputs, stride, act, se))
    return nn.Sequential(*layers, conv(40, 96, 1, act=act), classify(96))


def make_resnet() -> nn.Module:
    stem = (conv(3, 16, stride=2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, Residual(16, 16), Residual(16, 32, 2), Residual(32, 64, 2), classify(64))


class Dense(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.body = (
            nn.BatchNorm2d(inputs),
            nn.Sequential(conv(inputs, 4 * growth, 1), conv(4 * growth, growth)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(F.relu(self.norm(x)))], 1)


def make_densenet() -> nn.Module:
    first = [Dense(16 + 8 * i, 8) for i in range(3)]
    middle = (conv(40, 20, 1), nn.AvgPool2d(2))
    second = [Dense(20 + 8 * i, 8) for i in range(3)]
    return nn.Sequential(conv(3, 16, stride=2), *first, *middle, *second, nn.BatchNorm2d(44), nn.ReLU(), classify(44))


class Shuffle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(conv(half, half, 1), conv(half, half, act=None, groups=half), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.body(right)], 1)
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def make_shufflenet() -> nn.Module:
    down = conv(32, 64, stride=2)
    return nn.Sequential(conv(3, 32, stride=2), Shuffle(32), Shuffle(32), down, Shuffle(64), Shuffle(64), classify(64))


class UNet(nn.Module):
    """One level up by ConvTranspose, one by a bilinear and one by a nearest Resize."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = conv(3, 16), conv(16, 32), conv(32, 48), conv(48, 64)
        self.up = nn.ConvTranspose2d(64, 48, 2, 2)
        self.right, self.middle, self.left = conv(96, 48), conv(80, 32), conv(48, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.max_pool2d(two, 2))
        x = self.right(torch.cat([three, self.up(self.four(F.max_pool2d(three, 2)))], 1))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.interpolate(self.middle(torch.cat([two, x], 1)), scale_factor=2.0, mode="nearest")
        return self.head(self.left(torch.cat([one, x], 1)))


class Yolo(nn.Module):
    """Three outputs; the first joins boxes in pixels and scores between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, act=nn.SiLU, stride=2), conv(16, 32, act=nn.SiLU, stride=2))
        self.deep, self.lateral = conv(32, 64, act=nn.SiLU, stride=2), conv(64, 32, 1, act=nn.SiLU)
        self.merge = conv(64, 32, act=nn.SiLU)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (3, 5))
        self.heads = nn.ModuleList((nn.Conv2d(32, 9, 1), nn.Conv2d(64, 9, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stem(x)
        deep = self.deep(fine)
        up = self.lateral(torch.stack([deep, *(pool(deep) for pool in self.pools)]).mean(0))
        fine = self.merge(torch.cat([fine, F.interpolate(up, scale_factor=2.0)], 1))
        found = [head(level) for head, level in zip(self.heads, (fine, deep), strict=True)]
        rows = [self.decode(level, stride) for level, stride in zip(found, (4, 8), strict=True)]
        return torch.cat(rows, 1), *found

    def decode(self, x: Tensor, stride: int) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).permute(0, 2, 1)
        y, z = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([z, y], -1).reshape(1, h * w, 2).to(x.dtype)
        centre = (x[..., :2].sigmoid() + grid) * stride
        return torch.cat([centre, x[..., 2:4].exp() * stride, x[..., 4:].sigmoid()], -1)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 16, 1), nn.Sequential(conv(inputs, 12, 1), conv(12, 16))
        tall, wide = nn.Conv2d(12, 16, (5, 1), padding=(2, 0)), nn.Conv2d(16, 16, (1, 5), padding=(0, 2))
        self.five = nn.Sequential(conv(inputs, 12, 1), tall, wide, nn.ReLU())
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def make_inception() -> nn.Module:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(conv(3, 16, stride=2), pool, Inception(16), Inception(64), nn.Dropout(0.2), classify(64))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.wide = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels)
        self.narrow, self.gamma = nn.Linear(4 * channels, channels), nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_convnext() -> nn.Module:
    stem = (nn.Conv2d(3, 24, 4, 4), ChannelNorm(24), ConvNeXtBlock(24), ConvNeXtBlock(24))
    down = (ChannelNorm(24), nn.Conv2d(24, 48, 2, 2), ConvNeXtBlock(48))
    return nn.Sequential(*stem, *down, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, CLASSES))


class SuperResolution(nn.Module):
    """Residual blocks with InstanceNorm, and DepthToSpace."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1)
        make = (nn.Conv2d(24, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True), nn.PReLU(24))
        self.body = nn.Sequential(*make, nn.Conv2d(24, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        return F.pixel_shuffle(self.tail(y + self.body(y)), 2)


class Branches(nn.Module):
    """If and Loop around plain layers: one exporter takes them from a script, the other from torch's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gain = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2)), nn.Conv2d(32, 32, 1)
        self.tail = classify(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        if bool(x.mean() > 0.5):
            x = F.relu(self.gain(x))
        else:
            x = self.gain(x)
        for _ in range(int(x.shape[0])):
            x = x * 0.9
        return self.tail(x)


class Conditions(Branches):
    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = torch.cond(x.mean() > 0.5, lambda y: F.relu(self.gain(y)), lambda y: self.gain(y), (x,))
        count = torch.zeros((), dtype=torch.int64)
        done = torch._higher_order_ops.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, y * 0.9), (count, x))
        return self.tail(done[1])


def draw_images(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Smooth images of mean 0 and deviation 1, as neighbouring pixels of photographs are alike."""
    coarse = torch.from_numpy(generator.standard_normal((count, 3, size // 8, size // 8)).astype(np.float32))
    fine = generator.standard_normal((count, 3, size, size)).astype(np.float32)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear").numpy()
    return (smooth * 1.2 + fine * 0.4).astype(np.float32)


@dataclass(frozen=True)
class Architecture:
    """How to build a network and its inputs.

    scripted: for TorchScript, where that takes another form; least_opset: of the exporters that know its operators.
    """

    build: Callable[[], nn.Module]
    kind: str = "image"
    size: int = 32
    scripted: Callable[[], nn.Module] | None = None
    least_opset: int = 0

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        if self.kind == "tokens":
            return generator.integers(0, 100, (count, self.size))
        if self.kind == "frames":
            return generator.standard_normal((count, self.size, 40)).astype(np.float32).cumsum(1) * 0.3
        return draw_images(generator, count, self.size)


ARCHITECTURES = {
    "resnet": Architecture(make_resnet, size=64),
    "mobilenetv2": Architecture(lambda: make_mobile(nn.ReLU6, None), size=64),
    "mobilenetv3": Architecture(lambda: make_mobile(nn.Hardswish, nn.Hardsigmoid), size=64),
    "efficientnet": Architecture(lambda: make_mobile(nn.SiLU, nn.Sigmoid), size=64),
    "densenet": Architecture(make_densenet),
    "shufflenet": Architecture(make_shufflenet),
    "unet": Architecture(UNet),
    "yolo": Architecture(Yolo, size=64),
    "inception": Architecture(make_inception, size=64),
    "convnext": Architecture(make_convnext, size=64),
    "vit": Architecture(ViT),
    "swin": Architecture(SwinNet),
    "bert": Architecture(BERT, "tokens", 16),
    "encoder": Architecture(TorchEncoder, "tokens", 16, least_opset=14),
    "gpt2": Architecture(GPT, "tokens", 16),
    "lstm": Architecture(LSTMSpeech, "frames", 20),
    "gru": Architecture(GRUSpeech, "frames", 20),
    "if-loop": Architecture(Conditions, scripted=Branches),
    "super-resolution": Architecture(SuperResolution),
}


def build(name: str, *, scripted: bool, seed: int = 0) -> nn.Module:
    """The network in eval mode, its BatchNorm statistics those of a few batches."""
    entry = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = (entry.scripted if scripted and entry.scripted else entry.build)()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None  # the mean over all passes
    model.train()
    with torch.no_grad():
        for number in range(BATCH_NORM_PASSES if norms else 0):
            model(torch.from_numpy(entry.draw(16, seed=100 + number)))
    return model.eval()
