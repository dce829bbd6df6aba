"""Properties and reports: a property is a named statement and a check of it; a report says which hold, and why not.

A check yields `Measure`s, numbers with the bounds that they must keep. A property with `given` is checked on generated
cases: Hypothesis searches for one that breaks it and shrinks it to a small one that can be pasted into a test.
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdegen.errors import InvalidArgumentError, SdegenError, hint

PASSED, FAILED, ERROR, EXPECTED, INAPPLICABLE = "ok", "FAILED", "ERROR", "expected", "-"
_WIDTH = 118


class PropertyError(SdegenError, AssertionError):
    """A property does not hold; `report` has all that was checked."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[PropertyError], tuple[str]]:
        return type(self), (str(self),)


class Inapplicable(SdegenError):  # noqa: N818 - not a fault of anything
    """Raised in a check that finds that its property says nothing about the subject."""


class Measure(NamedTuple):
    """A number and the bounds it must keep, `low <= value <= high`; NaN keeps none. `what` says what was measured."""

    what: str
    value: float
    high: float = 0.0
    low: float = -math.inf
    yes_or_no: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is within its bounds."""
        return self.low <= self.value <= self.high

    @property
    def ratio(self) -> float:
        """How much of what is allowed is used: 1 at a bound; NaN counts as infinite."""
        if math.isnan(self.value):
            return math.inf
        if math.isinf(self.high):
            return self.low / self.value if self.value > 0 else math.inf
        if math.isinf(self.low):
            return self.value / self.high if self.high > 0 else math.inf if self.value > self.high else 0.0
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return abs(self.value - middle) / half if half > 0 else math.inf if self.value != middle else 0.0

    def __str__(self) -> str:
        if self.yes_or_no:
            return self.what
        exact = self.high == 0.0 and math.isinf(self.low)
        if math.isinf(self.high):
            return f"{self.what}: {self.value:.3g}, at least {self.low:.3g}"
        bound = "0" if exact else f"{self.high:.3g}" if math.isinf(self.low) else f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.what}: {self.value:.3g}, allowed {bound}"


def holds(what: str, truth: object) -> Measure:
    """The measure of a yes or no: `what` is what was seen when it is not true."""
    return Measure(what, float(not truth), yes_or_no=True)


Checker = Callable[..., Iterable[Measure]]


@dataclass(frozen=True)
class Property:
    """A named statement about a kind of object and how it is checked: `check(subject)`, or `check(subject, case)`.

    `applies(subject)` is None, or the reason why the property says nothing about the subject. `given(subject)` makes a
    Hypothesis strategy of cases, of which `examples` are tried. `full` properties are for the full mode only.
    """

    name: str
    statement: str
    check: Checker
    applies: Callable[[Any], str | None]
    given: Callable[[Any], Any] | None
    examples: int
    full: bool


class Suite:
    """The properties of one kind of object, in the order in which they are checked."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.properties: list[Property] = []

    def states(
        self,
        statement: str,
        *,
        applies: Callable[[Any], str | None] = lambda subject: None,
        given: Callable[[Any], Any] | None = None,
        examples: int = 15,
        full: bool = False,
    ) -> Callable[[Checker], Checker]:
        """Adds the function below it as a property named like it."""

        def add(check: Checker) -> Checker:
            name = getattr(check, "__name__", "").strip("_")
            self.properties.append(Property(name, statement, check, applies, given, examples, full))
            return check

        return add

    def __repr__(self) -> str:
        return f"<{len(self)} properties of a {self.kind}; print it to read them>"

    def __iter__(self) -> Iterator[Property]:
        return iter(self.properties)

    def __len__(self) -> int:
        return len(self.properties)

    def __str__(self) -> str:
        return "\n".join(f"{p.name:<28} {p.statement}" for p in self)

    def named(self, names: Iterable[str]) -> set[str]:
        """The names as a set; raises InvalidArgumentError on one that no property has."""
        if isinstance(names, str):
            raise InvalidArgumentError(f"names of properties must be a list, got {names!r}; write [{names!r}]")
        known = [p.name for p in self]
        for name in names:
            if name not in known:
                advice = hint(name, known, "the properties are")
                raise InvalidArgumentError(f"no property of a {self.kind} is called {name!r}: {advice}")
        return set(names)


class Outcome(NamedTuple):
    """What came of one property: how it ended, the measure nearest to (or beyond) its bound, and what broke it."""

    prop: Property
    status: str
    worst: Measure | None = None
    examples: int = 0
    seconds: float = 0.0
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether it counts against the subject."""
        return self.status in (FAILED, ERROR)

    def line(self) -> str:
        """One line of a report: what was measured, or the statement where all that counts is that it holds."""
        seen = self.message.split("\n")[0]
        if not seen and self.worst is not None and self.worst.value != 0:
            seen = str(self.worst)
        head = f"  {self.status:<8} {self.prop.name:<24} "
        return (head + textwrap.shorten(seen or self.prop.statement, _WIDTH - len(head), placeholder=" ...")).rstrip()


@dataclass(frozen=True)
class Report:
    """All outcomes of one check; true if nothing failed. Prints as a table, with the reasons below it."""

    title: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether something was checked and every property holds that was expected to."""
        return not self.failed and any(o.status != INAPPLICABLE for o in self.outcomes)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes that count against the subject."""
        return tuple(o for o in self.outcomes if o.bad)

    @property
    def examples(self) -> int:
        """How many generated cases were tried."""
        return sum(o.examples for o in self.outcomes)

    def __repr__(self) -> str:
        bad = ", ".join(o.prop.name for o in self.failed)
        return f"Report({self.title!r}: {len(self.outcomes)} properties, {'failed: ' + bad if bad else 'none failed'})"

    def __getitem__(self, name: str) -> Outcome:
        found = {o.prop.name: o for o in self.outcomes}
        if name not in found:
            raise KeyError(f"{name!r} was not checked: {hint(name, list(found), 'checked were')}")
        return found[name]

    def __str__(self) -> str:
        checked = [o for o in self.outcomes if o.status != INAPPLICABLE]
        left = len(self.outcomes) - len(checked)
        count = f"{sum(not o.bad for o in checked)} of {len(checked)} properties hold"
        apart = f", {left} do not apply" if left else ""
        cases = f"; {self.examples:,} generated cases" if self.examples else ""
        lines = [self.title, f"  {count}{apart}{cases}, {sum(o.seconds for o in self.outcomes):.1f} s", ""]
        lines += [o.line() for o in checked]
        lines += self._left_out()
        for o in self.failed:
            why = textwrap.indent(o.message, "    ")
            lines += ["", f"  {o.prop.name}: {o.prop.statement}", why]
        return "\n".join(lines)

    def _left_out(self) -> list[str]:
        """The properties that do not apply, by reason, as a paragraph."""
        reasons: dict[str, list[str]] = {}
        for o in self.outcomes:
            if o.status == INAPPLICABLE:
                reasons.setdefault(o.message, []).append(o.prop.name)
        if not reasons:
            return []
        text = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return ["", textwrap.fill(f"do not apply: {text}", _WIDTH, initial_indent="  ", subsequent_indent="    ")]

    def to_dict(self) -> dict[str, Any]:
        """The report in plain numbers and strings, for JSON."""
        rows = [
            {
                "property": o.prop.name,
                "statement": o.prop.statement,
                "status": o.status,
                "measured": o.worst._asdict() if o.worst is not None else None,
                "examples": o.examples,
                "seconds": o.seconds,
                "message": o.message,
            }
            for o in self.outcomes
        ]
        return {"title": self.title, "ok": self.ok, "outcomes": rows}


class _BrokenError(AssertionError):
    """A measure out of its bounds, on its way out of Hypothesis."""

    def __init__(self, measure: Measure, case: Any = None, why: str = "") -> None:
        super().__init__(str(measure))
        self.measure, self.case, self.why = measure, case, why


class _Worst:
    """The measure that uses most of what it is allowed."""

    def __init__(self) -> None:
        self.measure: Measure | None = None
        self.broken: _BrokenError | None = None
        self.cases = 0

    def see(self, measures: Iterable[Measure], case: Any = None) -> None:
        for measure in measures:
            if self.measure is None or measure.ratio > self.measure.ratio:
                self.measure = measure
            if not measure.holds:
                self.broken = _BrokenError(measure, case)
                raise self.broken


def examine(prop: Property, subject: Any, scale: float = 1.0, reason: str | None = None) -> Outcome:
    """Check one property of one subject; `scale` multiplies the number of generated cases.

    With a `reason` the property is expected to fail, and counts as failed if it holds after all.
    """
    start, worst = time.perf_counter(), _Worst()
    inapplicable = prop.applies(subject)
    if inapplicable is not None:
        return Outcome(prop, INAPPLICABLE, message=inapplicable)
    status, message = PASSED, ""
    try:
        if prop.given is None:
            worst.see(prop.check(subject))
        else:
            _search(prop, subject, max(1, round(prop.examples * scale)), worst)
    except _BrokenError as broken:
        worst.measure = broken.measure
        status, message = FAILED, str(broken.measure)
        if broken.case is not None:
            told = getattr(broken.case, "told", None)
            message += f"\nfor {broken.case!r}" + (f": {told(subject)}" if told else "")
            message += f"\n({broken.why})" if broken.why else ""
    except Inapplicable as reason_why:
        return Outcome(prop, INAPPLICABLE, message=str(reason_why))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        status = ERROR
        message = f"{type(error).__name__}: {error}\nin {where.name}, line {where.lineno} of {where.filename}"
    if status == PASSED and worst.measure is None:
        return Outcome(prop, INAPPLICABLE, message="none of the cases that were tried applies")
    if reason is not None and status != ERROR:
        status = EXPECTED if status == FAILED else FAILED
        message = f"as expected: {reason}" if status == EXPECTED else f"holds, and was expected to fail: {reason}"
    return Outcome(prop, status, worst.measure, worst.cases, time.perf_counter() - start, message)


def _search(prop: Property, subject: Any, examples: int, worst: _Worst) -> None:
    """Let Hypothesis look for a case that breaks the property, and shrink what it finds."""
    try:
        import hypothesis
    except ModuleNotFoundError:
        raise Inapplicable("needs Hypothesis: pip install 'sdegen[testing]'") from None
    names = ("too_slow", "data_too_large", "nested_given", "filter_too_much")
    quiet = [check for check in hypothesis.HealthCheck if check.name in names]

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=quiet,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(prop.given(subject))  # type: ignore[misc]
    def one(case: Any) -> None:
        worst.cases += 1
        worst.see(prop.check(subject, case), case)

    try:
        one()
    except hypothesis.errors.Flaky:
        if worst.broken is None:
            raise
        # the same case gave another result: it keeps state, or draws from somewhere else
        raise _BrokenError(worst.broken.measure, worst.broken.case, "a case that did not give the same again") from None


def run(
    suite: Suite,
    subject: Any,
    title: str,
    *,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
    fail_fast: bool = False,
    raise_on_fail: bool = True,
) -> Report:
    """Check the suite's properties of a subject: all, or `only` those named.

    expected_failed: property -> reason; one that holds after all counts as failed. full: with those properties too that
    take long, and ten times the generated cases. fail_fast: stop at the first failure. Raises PropertyError, whose
    message is the report, if a property fails, unless `raise_on_fail=False`; InvalidArgumentError on an unknown name.
    """
    outcomes = []
    for check in bound(suite, subject, title, only=only, expected_failed=expected_failed, full=full):
        outcomes.append(check.outcome())
        if fail_fast and outcomes[-1].bad:
            break
    report = Report(title, tuple(outcomes))
    if raise_on_fail and not report.ok:
        raise PropertyError(str(report), report)
    return report


@dataclass(frozen=True, repr=False)
class Check:
    """One property of one subject, to be called: a test case. Raises PropertyError if the property does not hold."""

    prop: Property
    subject: Any
    title: str
    scale: float = 1.0
    reason: str | None = None

    def __repr__(self) -> str:
        return f"{self.title}: {self.prop.name}"

    def applies(self) -> bool:
        """Whether the property says anything about the subject."""
        return self.prop.applies(self.subject) is None

    def outcome(self) -> Outcome:
        """What comes of it."""
        return examine(self.prop, self.subject, self.scale, self.reason)

    def __call__(self) -> Outcome:
        outcome = self.outcome()
        if outcome.status == INAPPLICABLE and "pytest" in sys.modules:
            sys.modules["pytest"].skip(outcome.message)
        if outcome.bad:
            raise PropertyError(str(Report(self.title, (outcome,))), Report(self.title, (outcome,)))
        return outcome


def bound(
    suite: Suite,
    subject: Any,
    title: str,
    *,
    only: Iterable[str] | None = None,
    expected_failed: Mapping[str, str] | None = None,
    full: bool = False,
) -> list[Check]:
    """The suite's properties bound to a subject, those that do not apply included."""
    given: Any = {} if expected_failed is None else expected_failed
    if not isinstance(given, Mapping) or not all(isinstance(reason, str) and reason for reason in given.values()):
        raise InvalidArgumentError(f"expected_failed must map properties to reasons, got {given!r}")
    expected = dict(given)
    suite.named(expected)
    names = suite.named([p.name for p in suite] if only is None else only)
    if not names:
        raise InvalidArgumentError("only= names no property, so nothing would be checked")
    return [
        Check(p, subject, title, 10.0 if full else 1.0, expected.get(p.name))
        for p in suite
        if p.name in names and (full or not p.full or only is not None)
    ]
