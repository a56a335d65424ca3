"""What a file is told that breaks a target's rules, as plain records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .rules import Level

# Rules that hold do not prove what a device does with a file.
NOT_RUN = "; the file was read, and the device was not run"


@dataclass(frozen=True)
class Violation:
    """One place that breaks a rule.

    rule: its name. where: the node, or the tensor. found and allowed: in words. source: where the rule comes from.
    level: what the device does there, as ``rules.Level`` has it.
    """

    rule: str
    where: str
    found: str
    allowed: str
    source: str
    level: Level = "refused"

    @property
    def text(self) -> str:
        """All of it in one line."""
        return f"{self.level}: {self.where}: {self.rule}: found {self.found}; allowed: {self.allowed} ({self.source})"


@dataclass(frozen=True)
class LintRecord:
    """A file against the rules of a target that can be read off the file.

    rules: the names of those that were judged. violations: refused ones first, then in the order of the rules, and of
    the nodes. judged: the number of quantized operators that the rules are about. unjudged: the others by name, and how
    many there are.
    """

    target: str
    model: str
    rules: tuple[str, ...]
    violations: tuple[Violation, ...]
    judged: int
    unjudged: dict[str, int] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[Violation, ...]:
        """The violations that are more than advice."""
        return tuple(each for each in self.violations if each.level != "advice")

    @property
    def passed(self) -> bool:
        """Whether all that was judged holds but for advice, and something was."""
        return self.judged > 0 and not self.broken

    @property
    def text(self) -> str:
        """How many rules hold, in one line."""
        left = ", ".join(f"{count} {op}" for op, count in self.unjudged.items())
        if not self.judged:
            found = f"judges what is quantized: {left}" if left else "was judged, as nothing is quantized"
            return f"no rule of target {self.target} {found}{NOT_RUN}"
        advice = [each.rule for each in self.violations if each.level == "advice"]
        rest = f"; advice: {_count(advice)}" if advice else ""
        return self._count_rules() + rest + (f"; not judged: {left}" if left else "") + NOT_RUN

    def _count_rules(self) -> str:
        total, broken = len(self.rules), [each.rule for each in self.broken]
        if broken:
            count = f"{len(broken)} violation{'s' if len(broken) > 1 else ''}"
            rules = f"{len(set(broken))} of the {total} rules" if total > 1 else "the one rule"
            return f"{count} of {rules} of target {self.target}: {_count(broken)}"
        advised = len({each.rule for each in self.violations})
        if advised:
            return f"{total - advised} of {total} rules of target {self.target} hold"
        holding = f"all {total} rules of target {self.target} hold"
        return holding if total > 1 else f"the one rule of target {self.target} holds"


def _count(rules: list[str]) -> str:
    """Each rule once, with the number of places where there are several: ``opset, attributes (3)``."""
    return ", ".join(f"{rule} ({count})" if count > 1 else rule for rule, count in Counter(rules).items())
