"""Nodes that onnx's evaluator computes otherwise than ONNX says, and their neighbours that it computes right."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.runtime.reference_faults import find_fault


def fault_of(build, text, opset, **constants):
    model = build(f"g (float[N, C, H, W] x) => (float[N, C, H, W] y) {{ y = {text} }}", opset=opset, **constants)
    return find_fault(model.graph.node[0], opset, {tensor.name: tensor for tensor in model.graph.initializer})


@pytest.mark.parametrize(
    ("wrong", "opset", "fault", "right"),
    [
        ("MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (x)", 17, "pads of unlike sizes, or with ceil_mode",
         "MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (x)"),
        ("MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1> (x)", 17, "pads of unlike sizes",
         "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1, strides = [2, 2]> (x)"),
        ('MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_LOWER"> (x)', 17, "auto_pad SAME_LOWER is padded as",
         'MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (x)'),
        ("AveragePool <kernel_shape = [2, 2], ceil_mode = 1> (x)", 17, "ceil_mode moves the windows",
         "AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (x)"),
        ("Softmax (x)", 11, "below opset 13 it takes the values of one axis", "Softmax <axis = -1> (x)"),
        ("LogSoftmax <axis = 2> (x)", 12, "below opset 13", "LogSoftmax <axis = -1> (x)"),
        ("LpPool <kernel_shape = [2, 2]> (x)", 18, "windows and pads are moved", "GlobalLpPool (x)"),
        ("LRN <size = 3> (x)", 17, "squares are summed for as many channels as there are samples", "Identity (x)"),
        ("LpNormalization <p = 1> (x)", 17, "p = 1 sums values with their signs", "LpNormalization (x)"),
        ("LSTM <hidden_size = 4, clip = 1.0> (x, w, r)", 17, "clip is not looked at", "LSTM (x, w, r)"),
        ("LSTM <input_forget = 1> (x, w, r)", 17, "input_forget is not looked at", "LSTM <input_forget = 0> (x, w, r)"),
        ("GRU (x, w, r, b, n)", 17, "the lengths of the samples are not looked at", "GRU (x, w, r, b, , h)"),
        ('RNN <activations = ["Relu"]> (x, w, r)', 17, "activations of its own are not looked at",
         'RNN <activations = ["Tanh", "Tanh"]> (x, w, r)'),
        ('GRU <activations = ["Sigmoid", "Relu"]> (x, w, r)', 17, "activations of its own",
         'GRU <activations = ["Sigmoid", "Tanh"]> (x, w, r)'),
        ('Resize <coordinate_transformation_mode = "align_corners"> (x, , s)', 17, "with align_corners, sizes that are",
         'Resize <coordinate_transformation_mode = "align_corners"> (x, , , n)'),
        ('Resize <coordinate_transformation_mode = "align_corners"> (x, , s)', 17, "with align_corners",
         'Resize <coordinate_transformation_mode = "align_corners"> (x, , t)'),
    ],
)  # fmt: skip
def test_a_fault_of_the_evaluator_is_known(build, wrong, opset, fault, right):
    scales = {"s": np.float32([1, 1, 1.5, 0.5]), "t": np.float32([1, 1, 2, 3])}
    assert fault_of(build, wrong, opset, **scales).startswith(fault)
    assert fault_of(build, right, opset, **scales) == ""


@pytest.mark.parametrize(("text", "least"), [("BatchNormalization (x, s, b, m, v)", 14), ("Softmax (x)", 13)])
def test_some_faults_end_with_an_opset(build, text, least):
    assert f"below opset {least}" in fault_of(build, text, least - 1)
    assert fault_of(build, text, least) == ""


def test_an_operator_of_another_domain_has_faults_of_its_own(build):
    assert fault_of(build, "own.LRN (x)", 17) == ""
