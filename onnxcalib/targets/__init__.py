"""What devices need of a file: one TOML file a target, which users can write too.

Read the files in this order. ``rules`` has the kinds of rules, ``rewrites`` what a model is brought into, ``target``
reads the files, and ``violation`` is what a file is told that breaks a rule. The targets themselves are the ``.toml``
files of this folder.
"""

from .rewrites import Rewrites
from .target import OWN_RUNTIME, Target, is_name, list_targets, load_target
from .violation import LintRecord, Violation

__all__ = [
    "OWN_RUNTIME",
    "LintRecord",
    "Rewrites",
    "Target",
    "Violation",
    "is_name",
    "list_targets",
    "load_target",
]
