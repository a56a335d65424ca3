"""Everything that executes a model, in onnxruntime, in torch or in onnx's own evaluator.

Read the files in this order: ``session`` runs models in onnxruntime, large ones ``segmented`` within the budget of
``memory``, ``optimized`` reads the graph that it makes of a model, ``turns`` times several of them, ``reference`` runs
them in onnx's evaluator, whose faults
``reference_faults`` knows, ``store`` keeps activations on disk, those that are no arrays as ``sequences`` spells them,
``device`` chooses where torch computes and ``cores`` counts what it may use, which ``environment``
describes, ``blocks`` turns a part of a graph into a
torch module with the help of ``converters``, ``workers`` runs tasks in other processes, which ``processes`` starts and
in which ``worker`` runs, in the order of a ``task_queue``, and ``cache`` keeps their measurements as ``records``, each
in a ``record_file``. A ``work_folder`` has those of one run. ``bodies`` follows a run into the bodies of If, Loop and
Scan. ``foreign`` runs files in the runtimes of targets, which are ``openvino_file`` and ``qnn_file``, and answer with a
``placement``.
"""

import os

# Before onnxruntime is imported, which otherwise writes a device's number into the user's cache folder and TMPDIR.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
