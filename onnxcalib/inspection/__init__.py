"""What is in a file: a model in, its contents as a record out; nothing is trained, and no code of the file's runs.

Read the files in this order: ``run`` is the whole of it. ``tally`` counts operators and constants, ``kernels`` asks
onnxruntime what it makes of each quantized layer. Of a float model, ``outlook`` says what a run of ``quantize`` would
do, with an ``example`` of a sample, and ``estimate`` how long that would take.
"""
