"""Calibrated, dynamic and float activations of a model of sequences side by side, beside quantize_dynamic.

    python benchmarks/speech.py MODEL.onnx --calib FOLDER --test FOLDER [--threshold X] [--variants NAME;NAME] [--speed]

Folders have one .npz of inputs for each sequence. For silero-vad that is its silero_vad_16k_sequence.onnx, of PyPI's
silero-vad, and inputs ``input`` (windows, 576) of speech at 16 kHz, 512 new values a window behind 64 of the one
before, with zeros for ``h`` and ``c`` (1, 1, 128).

Columns: SQNR of the first output in dB; % of its values on float's side of the threshold; quantized bytes / float
bytes. With --speed, the speed against float on the first test sequence, on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from accuracy import compare_speed, no_cache
from dynamic import measure_sqnr

FLOAT_CONVOLUTIONS = {"layers": {"op:Conv": {"activation_bits": 32}}}
# Settings, or the operators that quantize_dynamic quantizes; None: all that it can.
VARIANTS: dict[str, dict | tuple[str, ...] | None] = {
    "static W8A8": {},
    "dynamic W8A8": {"activations": "dynamic"},
    "dynamic W4A8": {"activations": "dynamic", "weight_bits": 4},
    "dynamic, float into Conv": {"activations": "dynamic", **FLOAT_CONVOLUTIONS},
    "static, DynamicQuantizeLSTM": {"layers": {"op:LSTM": {"activations": "dynamic"}}},
    "static W4A8": {"weight_bits": 4},
    "weights alone W8": {"activation_bits": 32},
    "weights alone W4": {"activation_bits": 32, "weight_bits": 4, "first_last_bits": 8},
    "LSTM alone": {"activations": "dynamic", "exclude": ["op:Conv|MatMul|Gemm"]},
    "quantize_dynamic, LSTM": ("LSTM",),
    "quantize_dynamic": None,
}


def make(name: str, output: Path, arguments: argparse.Namespace) -> None:
    """Write the file of a variant."""
    settings = VARIANTS[name]
    if not isinstance(settings, dict):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        ops = None if settings is None else list(settings)
        quantize_dynamic(
            arguments.model, output, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=ops
        )
        return
    import onnxcalib

    with no_cache():
        onnxcalib.quantize(arguments.model, arguments.calib, onnxcalib.QuantizeConfig(**settings)).save(output)


def read(folder: Path) -> list[dict[str, np.ndarray]]:
    """The inputs of each sequence."""
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def run(path: Path, sequences: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The first output of all sequences, joined."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feeds)[0].reshape(-1) for feeds in sequences])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="sequences that calibrate")
    parser.add_argument("--test", type=Path, required=True, help="sequences to measure on")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS), help="NAME;NAME")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args(argv)
    sequences = read(arguments.test)
    wanted = run(arguments.model, sequences)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.variants):
            output = Path(folder) / f"{number}.onnx"
            make(name, output, arguments)
            given = run(output, sequences)
            agreement = 100 * np.mean((wanted > arguments.threshold) == (given > arguments.threshold))
            size = output.stat().st_size / arguments.model.stat().st_size
            speed = f"{compare_speed(arguments.model, output, sequences[0]):7.2f}" if arguments.speed else ""
            print(f"{name:26}{measure_sqnr(wanted, given):7.1f}{agreement:8.2f}{size:7.3f}{speed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
