"""Graph passes: each changes a model in place and returns how many rewrites it made; what the model computes stays.

Read the files in the order in which ``quantization.rewrite`` runs them. ``fix_inputs`` comes before all, where inputs
are to have fixed shapes. ``normalise``, ``ort_fusions``, ``opset`` and ``branches`` bring a model into one form.
``float16``, ``fold``, ``target_shapes`` and ``batchnorm`` compute what is constant. ``written_out`` writes functions of
several nodes as onnxruntime fuses them, ``masks``, ``l2_norms`` and ``hard_sigmoids`` as some targets need them.
``einsum``, ``transposed``, ``products``, ``gemm``, ``pool``, ``attributes``, ``axes``, ``hardswish``, ``gates``,
``pads`` and ``duplicates`` write operators with integer kernels. ``draws`` is for whatever is run: it makes random
values the same in both models. ``rescale`` gives layers an input without rounding error, ``smooth`` evens the channels
of one, ``rotate`` mixes those of transformers, ``mix`` those of bottlenecks, ``even_joins`` brings what a Concat joins
to one scale, and ``equalize`` moves factors between layers. Four passes are for quantized graphs: ``joint_reads`` keeps
functions together, ``even_bits`` has operators read and give as many bits; two return a copy, ``unsigned_weights``,
which makes sums exact, and ``saturating_sums``, which makes them saturate.
"""
