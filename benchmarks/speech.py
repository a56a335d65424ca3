"""Calibrated, dynamic and float activations of a speech model side by side, in closed loop, beside quantize_dynamic.

    python benchmarks/speech.py MODEL.onnx --calib FOLDER --test FOLDER [--test FOLDER] [--state OUT:IN] [--window N]
        [--hop N] [--threshold X] [--variants NAME;NAME] [--speed]

Folders have .wav files, or .npz files of arrays. With --state, those of silero-vad being stateN:state, each file is a
sequence whose steps are run one by one, and each model reads its own states. The windows of silero-vad have 576 values,
512 of which are new. Without --state each file is a sample: for silero_vad_16k_sequence.onnx inputs ``input`` (windows,
576), with zeros for ``h`` and ``c`` (1, 1, 128).

Columns: for each test folder, SQNR of the first output in dB, and % of its values on float's side of the threshold;
quantized bytes / float bytes. With --speed, the speed against float on the first sample or step, on one thread. A
variant ``planned SIZE`` has bits chosen within a size, such as 0.2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from accuracy import compare_speed, no_cache
from dynamic import measure_sqnr

import onnxcalib
from onnxcalib.data import CalibrationSet
from onnxcalib.quantization.closed_loop import ClosedLoop
from onnxcalib.runtime.session import Session

FLOAT_CONVOLUTIONS = {"layers": {"op:Conv": {"activation_bits": 32}}}
# silero-vad's first convolution is a Fourier transform, and the second reads its magnitudes. Where nothing is said, the
# first reads float, and so does the second of steps of sequences.
INTEGER_MAGNITUDES = {"layers": {".*encoder/0/.*": {"activation_bits": 8}}}
INTEGER_TRANSFORM = {"layers": {".*(stft|encoder/0/).*": {"activation_bits": 8}}}
FLOAT_FIRST = {"layers": {".*(stft|encoder/[01]/).*": {"activation_bits": 32}}}
WIDEST = {"range": "percentile", "percentile": 99.99}
PLANNED = "planned "  # begins the names of variants within a size, such as 0.2
# Settings, or the operators that quantize_dynamic quantizes; None: all that it can.
VARIANTS: dict[str, dict | tuple[str, ...] | None] = {
    "static W8A8": {},
    "... magnitudes on integers": INTEGER_MAGNITUDES,
    "... all on integers": INTEGER_TRANSFORM,
    "static W8A8, 99.99%": WIDEST,
    "... float into first three": {**WIDEST, **FLOAT_FIRST},
    "static W4A8": {"weight_bits": 4},
    "dynamic W8A8": {"activations": "dynamic"},
    "dynamic W4A8": {"activations": "dynamic", "weight_bits": 4},
    "dynamic, float into Conv": {"activations": "dynamic", **FLOAT_CONVOLUTIONS},
    "weights alone W8": {"activation_bits": 32},
    "weights alone W4": {"activation_bits": 32, "weight_bits": 4, "first_last_bits": 8},
    "LSTM alone": {"activations": "dynamic", "exclude": ["op:Conv|MatMul|Gemm"]},
    "quantize_dynamic, LSTM": ("LSTM",),
    "quantize_dynamic": None,
}


def make(name: str, output: Path, arguments: argparse.Namespace, data: onnxcalib.DataConfig) -> None:
    """Write the file of a variant."""
    settings = {"max_size": name.removeprefix(PLANNED)} if name.startswith(PLANNED) else VARIANTS[name]
    if not isinstance(settings, dict):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        ops = None if settings is None else list(settings)
        quantize_dynamic(
            arguments.model, output, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=ops
        )
        return
    config = onnxcalib.QuantizeConfig(data=data, threads=1, **settings)
    with no_cache():
        onnxcalib.quantize(arguments.model, arguments.calib, config).save(output)


def run(path: Path, samples: CalibrationSet) -> np.ndarray:
    """The first output of all samples, or of all steps, the model reading its own states."""
    session = Session(onnx.load(path), deployed=True, threads=1)
    first, loop = session.outputs[0], ClosedLoop(session, samples)
    indices = range(len(samples))
    if not samples.states:
        return np.concatenate([session.run(samples.read([index]))[first].reshape(-1) for index in indices])
    return np.concatenate([loop.run(index, loop.feed(index))[first].reshape(-1) for index in indices])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="recordings or sequences that calibrate")
    parser.add_argument("--test", type=Path, action="append", required=True, help="others to measure on")
    parser.add_argument("--state", action="append", default=[], metavar="OUT:IN")
    parser.add_argument("--window", type=int)
    parser.add_argument("--hop", type=int)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS), help="NAME;NAME")
    parser.add_argument("--speed", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    data = onnxcalib.DataConfig(state=arguments.state, window=arguments.window, hop=arguments.hop)
    tests = [onnxcalib.open_calibration(folder, arguments.model, data) for folder in arguments.test]
    wanted = [run(arguments.model, samples) for samples in tests]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.variants):
            output = Path(folder) / f"{number}.onnx"
            try:
                make(name, output, arguments, data)
            except onnxcalib.ConfigError as error:  # settings of nodes that other files of the model name otherwise
                print(f"{name:28}{error}", flush=True)
                continue
            cells = ""
            for samples, reference in zip(tests, wanted, strict=True):
                given = run(output, samples)
                same = (reference > arguments.threshold) == (given > arguments.threshold)
                cells += f"{measure_sqnr(reference, given):7.1f}{100 * np.mean(same):8.2f}"
            size = output.stat().st_size / arguments.model.stat().st_size
            speed = f"{compare_speed(arguments.model, output, tests[0].read([0])):7.2f}" if arguments.speed else ""
            print(f"{name:28}{cells}{size:7.3f}{speed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
