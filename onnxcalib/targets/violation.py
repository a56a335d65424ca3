"""What a file is told that breaks a target's rules, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

# Rules that hold do not prove what a device does with a file.
NOT_RUN = "; the file was read, and the device was not run"


@dataclass(frozen=True)
class Violation:
    """One place that breaks a rule.

    rule: its name. where: the node, or the tensor. found and allowed: in words. source: where the rule comes from.
    """

    rule: str
    where: str
    found: str
    allowed: str
    source: str

    @property
    def text(self) -> str:
        """All of it in one line."""
        return f"{self.where}: {self.rule}: found {self.found}; allowed: {self.allowed} ({self.source})"


@dataclass(frozen=True)
class LintRecord:
    """A file against the rules of a target that can be read off the file.

    rules: the names of those that were judged. violations: in the order of the rules, and of the nodes.
    """

    target: str
    model: str
    rules: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def passed(self) -> bool:
        return not self.violations

    @property
    def text(self) -> str:
        """How many rules hold, in one line."""
        total = len(self.rules)
        if self.passed:
            holding = f"all {total} rules of target {self.target} hold"
            return (holding if total > 1 else f"the one rule of target {self.target} holds") + NOT_RUN
        broken = list(dict.fromkeys(each.rule for each in self.violations))
        count = f"{len(self.violations)} violation{'s' if len(self.violations) > 1 else ''}"
        rules = f"{len(broken)} of the {total} rules" if total > 1 else "the one rule"
        return f"{count} of {rules} of target {self.target}: {', '.join(broken)}{NOT_RUN}"
