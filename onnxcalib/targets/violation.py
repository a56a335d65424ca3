"""What a file is told that breaks a target's rules, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field

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

    rules: the names of those that were judged. violations: in the order of the rules, and of the nodes. judged: the
    number of quantized operators that the rules are about. unjudged: the others by name, and how many there are.
    """

    target: str
    model: str
    rules: tuple[str, ...]
    violations: tuple[Violation, ...]
    judged: int
    unjudged: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all that was judged holds, and something was."""
        return self.judged > 0 and not self.violations

    @property
    def text(self) -> str:
        """How many rules hold, in one line."""
        total, left = len(self.rules), ", ".join(f"{count} {op}" for op, count in self.unjudged.items())
        if not self.judged and not self.violations:
            return f"no rule of target {self.target} judges what is quantized: {left}{NOT_RUN}"
        rest = (f"; not judged: {left}" if left else "") + NOT_RUN
        if self.passed:
            holding = f"all {total} rules of target {self.target} hold"
            return (holding if total > 1 else f"the one rule of target {self.target} holds") + rest
        broken = list(dict.fromkeys(each.rule for each in self.violations))
        count = f"{len(self.violations)} violation{'s' if len(self.violations) > 1 else ''}"
        rules = f"{len(broken)} of the {total} rules" if total > 1 else "the one rule"
        return f"{count} of {rules} of target {self.target}: {', '.join(broken)}{rest}"
