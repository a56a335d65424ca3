"""Small transformers and recurrent networks, written as their authors write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH = 100, 48


class Attention(nn.Module):
    """Multi-head attention of plain products; ``mask`` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = (scores if mask is None else scores + mask).softmax(-1)
        return self.out((scores @ value).transpose(1, 2).reshape(n, length, width))


class Encoder(nn.Module):
    """Norm first, as in ViT and GPT-2."""

    def __init__(self, width: int, heads: int = 4, approximate: str = "none") -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate=approximate), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), mask)
        return x + self.mlp(self.second(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place, self.layers = (
            nn.Parameter(0.2 * torch.randn(1, 17, WIDTH)),
            nn.ModuleList(map(Encoder, [WIDTH] * 2)),
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Window(nn.Module):
    """Attention in windows of 4 x 4, shifted by rolling."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift, self.encoder, self.bias = shift, Encoder(width), nn.Parameter(0.2 * torch.randn(4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = self.encoder(x, self.bias)
        x = x.reshape(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Merge(nn.Module):
    """Patch merging: four neighbours to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class SwinNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(48)
        self.body = nn.Sequential(Window(24, 0), Window(24, 2), Merge(24), Window(48, 0))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(self.patch(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


class Post(Encoder):
    """Norm last, as in BERT."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x + self.attention(x, mask))
        return self.second(x + self.mlp(x))


class BERT(nn.Module):
    """Layers of our own, a mask of the padding, and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList(map(Post, [WIDTH] * 2))
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.places(places))
        mask = (tokens == 0)[:, None, None, :].to(x.dtype) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pool(x[:, 0])))


class TorchEncoder(nn.Module):
    """torch's own transformer layers, whose attention is one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.words(tokens)).mean(1))


class GPT(nn.Module):
    """A decoder whose head shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList(Encoder(WIDTH, approximate="tanh") for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("mask", torch.full((64, 64), -1e4).triu(1))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.words(tokens) + self.places(torch.arange(length, device=tokens.device))
        for layer in self.layers:
            x = layer(x, self.mask[:length, :length])
        return self.head(self.norm(x))


class LSTMSpeech(nn.Module):
    """Frames of features through 1-d convolutions and a bidirectional LSTM to scores of symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(40, 48, 3, padding=1), nn.ReLU(), nn.Conv1d(48, 48, 3, padding=1), nn.ReLU()
        )
        self.memory = nn.LSTM(48, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, 29)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.memory(self.front(x.transpose(1, 2)).transpose(1, 2))
        return F.log_softmax(self.head(F.relu(self.hidden(x))), -1)


class GRUSpeech(nn.Module):
    """A mask over the features, from a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.memory, self.head = nn.Linear(40, 48), nn.GRU(48, 48, batch_first=True), nn.Linear(48, 40)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.memory(torch.tanh(self.inner(x)))
        return x * torch.sigmoid(self.head(hidden))
