"""What a user has, as samples that a model can read.

Read the files in this order. ``listing`` reads folders. ``npy`` and ``npz`` read the formats of arrays, and ``room``
keeps what is unpacked. ``past`` and ``states`` know the inputs that a model's own outputs fill. ``arrays``,
``tensors``, ``images`` with ``frames``, ``audio``, ``textfiles``, and ``tokenized`` with ``packed`` read one kind each.
``iterables`` reads what Python yields, and ``spool`` keeps it on disk. ``sources`` finds out which kind a path or an
object holds. ``checked`` and ``scan`` compare the samples with the model's inputs. ``steps`` makes samples of the steps
of sequences. ``padding`` trims sequences to their own tokens. ``calibration_set`` ties all of them into the set that
the jobs read batch by batch, and ``holdout`` divides it; ``digest`` identifies it, and ``remarks`` are what users are
told of it. ``labels`` reads the class of each sample. ``ways`` says which kinds a model takes.
"""

from ..spec import InputSpec
from .calibration_set import CalibrationSet, SampleSource, open_calibration

__all__ = ["CalibrationSet", "InputSpec", "SampleSource", "open_calibration"]
