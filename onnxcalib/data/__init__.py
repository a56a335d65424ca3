"""What a user has, as samples that a model can read.

Read the files in this order: ``arrays``, ``images``, ``textfiles`` and ``tokenized`` are the kinds of samples.
``sources`` finds out which kind a path or an object holds. ``padding`` cuts sequences to their own tokens.
``calibration_set`` ties all of them into the set that the jobs read batch by batch. ``labels`` has their classes.
"""

from .calibration_set import CalibrationSet, open_calibration

__all__ = ["CalibrationSet", "open_calibration"]
