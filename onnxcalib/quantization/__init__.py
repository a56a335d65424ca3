"""Job 1: a float model and a few samples in, a quantized model out.

Read the files in the order of a run. ``run`` holds its settings and what its parts share; ``prepare`` and
``smoke_test`` come first, ``calibrate`` and ``input_grid`` choose activation grids. ``state`` is what reconstruction
knows so far, ``reconstruct`` goes from block to block, ``solve`` finds integers, ``probes`` weigh their errors by the
model's outputs, ``learn`` runs AdaQuant. ``statistics`` and ``biases`` tune the whole model, ``evaluate`` judges each
of them. ``verify``, with ``output_tally``, ``saturation`` and ``padding_mask``, measures the result.
"""
