"""Quantize a small sentence encoder with plain sentences, and compare embeddings in onnxruntime.

    python examples/encoder/encoder.py [--out DIR] [--steps N]

The encoder is BERT-like: two transformer layers, and the mean of the tokens that the attention mask counts. It is
trained here to tell six topics apart, on sentences that are made from templates. Its tokenizer is made here too.
Quantization reads a text file of 200 sentences and no topics. The comparison is on sentences that neither training nor
quantization has read.
"""

from __future__ import annotations

import argparse
import itertools
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

import onnxcalib

TOPICS = {
    "weather": ("rain", "snow", "wind", "sunshine"),
    "food": ("bread", "soup", "cheese", "apples"),
    "travel": ("trains", "harbours", "airports", "hotels"),
    "music": ("songs", "violins", "concerts", "drums"),
    "sport": ("football", "rowing", "tennis", "races"),
    "money": ("taxes", "loans", "markets", "prices"),
}
TEMPLATES = (
    "we talked about {0} and {1} all evening",
    "the {0} of this year were better than the {1}",
    "nobody in the town likes {0}",
    "she wrote a long letter on {0} , {1} and {2}",
    "are there any {0} where you live ?",
    "{0} again , and after that {1}",
)
CALIBRATION_SENTENCES = 200
WIDTH, HEADS, LAYERS, LONGEST = 64, 4, 2, 32
SEED = 0


@dataclass(frozen=True)
class Row:
    """One line of the table; cosine is the mean over sentences, with the float embedding."""

    name: str
    accuracy: float
    cosine: float
    size: int


def make_sentences() -> tuple[list[str], list[int]]:
    """All sentences of the templates in random order, and the number of the topic of each."""
    pairs = [
        (template.format(*words), topic)
        for topic, vocabulary in enumerate(TOPICS.values())
        for template in TEMPLATES
        for words in itertools.permutations(vocabulary, 3)
    ]
    pairs = list(dict.fromkeys(pairs))  # templates with fewer words give the same sentence more than once
    random.Random(SEED).shuffle(pairs)
    return [text for text, _ in pairs], [topic for _, topic in pairs]


def make_tokenizer(sentences: list[str], path: Path) -> Tokenizer:
    """A tokenizer of whole words with [CLS] and [SEP] around each sentence, saved as a tokenizer.json."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(sentences, trainers.WordLevelTrainer(special_tokens=special))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(path))
    return tokenizer


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual, normalized afterwards as BERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape[0], -1, WIDTH)
        x = self.norms[0](x + self.output(mixed))
        return self.norms[1](x + self.outer(nn.functional.gelu(self.inner(x))))


class Encoder(nn.Module):
    """Tokens to one embedding a sentence: the mean of the last layer over the tokens that the mask counts."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(positions))
        mask = attention_mask.to(x.dtype)
        for layer in self.layers:
            x = layer(x, (1 - mask[:, None, None]) * -1e4)
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def encode(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, np.ndarray]:
    """Both inputs of the encoder, int64 (sentences, tokens of the longest)."""
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(sentences)
    inputs = {"input_ids": [each.ids for each in found], "attention_mask": [each.attention_mask for each in found]}
    return {name: np.array(values, np.int64) for name, values in inputs.items()}


def train(tokenizer: Tokenizer, sentences: list[str], topics: list[int], steps: int) -> tuple[Encoder, nn.Linear]:
    """The encoder, and the linear classifier of topics that it was trained under."""
    torch.manual_seed(SEED)
    encoder, head = Encoder(tokenizer.get_vocab_size()), nn.Linear(WIDTH, len(TOPICS))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3)
    inputs = {name: torch.from_numpy(array) for name, array in encode(tokenizer, sentences).items()}
    targets = torch.tensor(topics)
    for _ in range(steps):
        chosen = torch.randint(len(sentences), (32,))
        embeddings = encoder(*(array[chosen] for array in inputs.values()))
        loss = nn.functional.cross_entropy(head(embeddings), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval(), head


def export(encoder: Encoder, path: Path) -> None:
    """ONNX with free numbers of sentences and tokens."""
    axes = {0: "sentences", 1: "tokens"}
    names = ["input_ids", "attention_mask"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on shapes that stay as traced
        torch.onnx.export(
            encoder,
            (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)),
            path,
            dynamo=False,
            input_names=names,
            output_names=["embedding"],
            dynamic_axes={**dict.fromkeys(names, axes), "embedding": {0: "sentences"}},
        )


def embed(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    (embeddings,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    return embeddings


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the models and the sentences")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sentences, topics = make_sentences()
    half = len(sentences) // 2
    tokenizer = make_tokenizer(sentences, options.out / "tokenizer.json")
    encoder, head = train(tokenizer, sentences[:half], topics[:half], options.steps)
    export(encoder, options.out / "encoder.onnx")
    calibration = options.out / "sentences.txt"
    calibration.write_text("".join(f"{text}\n" for text in sentences[:CALIBRATION_SENTENCES]), encoding="utf-8")
    paths = {"float": options.out / "encoder.onnx"}
    data = onnxcalib.DataConfig(tokenizer=options.out / "tokenizer.json")
    for bits in (8, 4):
        # So small a network runs about as fast in float, where the default placement would leave half of it.
        config = onnxcalib.QuantizeConfig(weight_bits=bits, data=data, placement="all")
        paths[f"W{bits}A8"] = options.out / f"encoder.w{bits}a8.onnx"
        onnxcalib.quantize(paths["float"], calibration, config).save(paths[f"W{bits}A8"])
    rows = measure(paths, encode(tokenizer, sentences[half:]), topics[half:], head)
    for row in rows:
        print(f"{row.name:6} accuracy {row.accuracy:6.1%}  cosine {row.cosine:.5f}  {row.size / 1000:6.0f} kB")
    return rows


def measure(paths: dict[str, Path], inputs: dict[str, np.ndarray], topics: list[int], head: nn.Linear) -> list[Row]:
    """One row a model; the first is the float one."""
    embeddings = {name: embed(path, inputs) for name, path in paths.items()}
    rows = []
    for name, found in embeddings.items():
        reference = embeddings["float"]
        cosines = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
        with torch.no_grad():
            classes = head(torch.from_numpy(found)).argmax(1).numpy()
        size = paths[name].stat().st_size
        rows.append(Row(name, float((classes == np.array(topics)).mean()), float(cosines.mean()), size))
    return rows


if __name__ == "__main__":
    main()
