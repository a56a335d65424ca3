"""Job 3: whether a quantized model is as good as its users need.

Read the files in this order: ``compare`` and ``score`` run both models, ``kernel_consistency`` compares kernels with
graph optimizations off and on, ``timing`` times both, ``pair`` and ``explain`` say which layers lose, ``judge``
applies the gates, ``render`` writes verdicts for others, ``run`` ties them.
"""
