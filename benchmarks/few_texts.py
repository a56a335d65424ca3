"""Solve single layers of a sentence encoder on few texts, on views of them and on more texts, and judge them on others.

    python benchmarks/few_texts.py --model FILE.onnx [--layers 3] [--samples 256] [--more 1536] [--views 6]

The data folder is that of ``text.py``. Weights alone are rounded to 4 bits, on the moments of the float model's own
activations. Rows: the texts or moments that layers were solved on; columns: SQNR dB of the layer's output, about its
mean, on sentences of text/sts-dev.csv. The last row is solved on these sentences themselves, and no set of others can
do better. ``rounded`` is to nearest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from accuracy import ROOT
from onnx import numpy_helper
from text import LENGTH, choose_texts, read_pairs

# Output channels of each layer, and one development sentence in so many.
CHANNELS, DEV_STEP = 96, 12


class Layers:
    """The products with a matrix behind which a transformer's residuals are added, and in front of its Gelu."""

    def __init__(self, path: Path, number: int) -> None:
        from onnxcalib.graph.load import inputs_of
        from onnxcalib.runtime.session import Session

        model = onnx.load(path)
        weights = {t.name: t for t in model.graph.initializer}
        own = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
        own = [n for n in own if f"layer.{number}/" in n.name and "self" not in n.name]
        self.weights = {n.input[0]: torch.from_numpy(numpy_helper.to_array(weights[n.input[1]]).T.copy()) for n in own}
        self.specs = inputs_of(model)
        self.session = Session(model, also=list(self.weights))

    def sum_moments(self, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, object]:
        """The sums of x x^T of each layer's input over all tokens that are no padding."""
        from onnxcalib.numeric.gram import MomentSum

        sums = {tensor: MomentSum() for tensor in self.weights}
        for feeds in batches:
            values = self.session.run(feeds, list(self.weights))
            for tensor, total in sums.items():
                x = torch.from_numpy(values[tensor][feeds["attention_mask"] > 0]).T[None]
                total.add(x, x)
        return sums

    def judge(self, sums: dict[str, object] | None, judging: dict[str, object]) -> str:
        """SQNR dB of each layer solved on ``sums``, or rounded, under the moments ``judging``."""
        from dataclasses import replace

        from onnxcalib.numeric.prior import Prior
        from onnxcalib.numeric.solve import round_layer, solve_layer
        from onnxcalib.spec import QuantSpec

        spec, cells = QuantSpec(4, signed=True, symmetric=True, axis=1, signed_scale=True), []
        for tensor, weight in self.weights.items():
            rows = weight[None, :CHANNELS]
            if sums is None:
                found = round_layer(rows, spec)
            else:
                moments = replace(sums[tensor].centre(), of_input=True)
                found = solve_layer(moments, rows, spec, prior=Prior(0.1, 0.0), width=8)
            gram = judging[tensor].centre().gram[0]
            error = rows[0].double() - (found.integers[0] * found.scale[0, :, None]).double()
            power, lost = (float(((each @ gram) * each).sum()) for each in (rows[0].double(), error))
            cells.append(f"{10 * np.log10(power / lost):7.1f}")
        return "".join(cells)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with text/")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[3], help="numbers of the encoder's layers")
    parser.add_argument("--samples", type=int, default=256, help="sentences that calibrate")
    parser.add_argument("--more", type=int, default=1536, help="sentences of the row of many")
    parser.add_argument("--views", type=int, default=6, help="views of each sentence")
    arguments = parser.parse_args(argv)
    from onnxcalib import DataConfig, QuantizeConfig, open_calibration, prepare
    from onnxcalib.quantization.views import choose_views

    tokenizer = arguments.data / "text/tokenizer.json"
    data = DataConfig(tokenizer=tokenizer, max_length=LENGTH)
    config = QuantizeConfig(weight_bits=4, smoothing="off", views=arguments.views, data=data)
    few = choose_texts(arguments.data, arguments.samples)
    prepared = prepare(arguments.model, few, config, test=few)
    views, generator = choose_views(prepared), np.random.default_rng(0)
    first, second, _ = read_pairs(arguments.data / "text/sts-dev.csv")
    for number in arguments.layers:
        layers = Layers(arguments.model, number)

        def read(texts: list[str], layers: Layers = layers) -> Iterable[dict[str, np.ndarray]]:
            return open_calibration(texts, layers.specs, data).batches(32)

        print(f"layer {number}, W4 on the development sentences: {', '.join(layers.weights)}")
        judging, own = (layers.sum_moments(read(texts)) for texts in ((first + second)[::DEV_STEP], few))
        print(f"{'rounded':34}{layers.judge(None, judging)}")
        print(f"{len(few):5} sentences{'':19}{layers.judge(own, judging)}", flush=True)
        for count in range(1, arguments.views + 1):
            others = layers.sum_moments(views.draw(feeds, generator) for feeds in read(few))
            for tensor, total in own.items():
                total.merge(others[tensor])
            if count in (1, 3, arguments.views):
                print(f"{len(few):5} and {count} views of each{'':9}{layers.judge(own, judging)}", flush=True)
        more = layers.sum_moments(read(choose_texts(arguments.data, arguments.more)))
        print(f"{arguments.more:5} sentences{'':19}{layers.judge(more, judging)}")
        print(f"{'these sentences themselves':34}{layers.judge(judging, judging)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
