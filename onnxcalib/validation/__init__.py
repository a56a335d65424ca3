"""Job 3: whether a quantized model is as good as its users need.

Read the files in this order: ``compare``, ``score`` and ``next_tokens`` run both models, ``kernel_consistency``
compares kernels with graph optimizations off and on, ``bodies`` opens those of If, Loop and Scan for it and for what
explains losses, ``arbitrate`` lets onnx's evaluator judge, ``timing`` times both
models, ``smoothed``, ``pair``, ``survey``, ``reasons`` and ``explain`` find the layers that lose most, ``on_device``
runs the file in the runtime of a target, ``judge`` applies the gates, ``markup``, ``sheet``, ``render_lint`` and
``render`` write tables, the rules of a target and whole verdicts as Markdown and JUnit XML, and ``run`` ties them
together.
"""
