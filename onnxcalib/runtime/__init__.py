"""Everything that executes a model, in onnxruntime or in torch.

Read the files in this order: ``session`` runs models in onnxruntime, ``store`` keeps activations on disk, ``device``
chooses where torch computes, ``blocks`` turns a part of a graph into a torch module with the help of ``converters``,
``workers`` runs tasks in other processes, and ``cache`` keeps their measurements.
"""
