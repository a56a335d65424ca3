"""Graph passes: each changes a model in place and returns how many rewrites it made; what the model computes stays.

Read the files in the order in which ``quantization.rewrite`` runs them. ``normalise``, ``ort_fusions`` and ``opset``
bring a model into one form. ``float16``, ``fold`` and ``batchnorm`` compute what is constant. ``einsum``, ``products``,
``gemm``, ``pool``, ``attributes``, ``hardswish``, ``pads`` and ``duplicates`` write operators that have integer
kernels. ``rescale`` gives layers an input without rounding error. Two passes are for quantized graphs and return a
copy: ``unsigned_weights`` makes sums exact, ``saturating_sums`` makes them saturate.
"""
