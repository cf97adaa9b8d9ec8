"""A model of CloudWatch's metric alarms, as its documentation describes them.

- "Alarm evaluation", "Alarm evaluation window" (CloudWatch User Guide): an alarm compares data points, each the statistic
  of one period. The window slides: it ends at each evaluation, once a minute, whatever the clock says. M of N data
  points have to breach.
- "Configuring how CloudWatch alarms treat missing data" (the same): more data points are retrieved than evaluated, how
  many more is not documented. Real ones count first, however old; missing ones are filled only if there are too few.
- "Using math expressions with CloudWatch metrics" (the same): what FILL, SUM, MAX and arithmetic make of a missing value.
- "Working with Lambda function metrics" (Lambda Developer Guide): what Lambda itself measures is stamped with the start
  of a run, and is published after its end.
"""

import heapq
import math
import operator
from bisect import bisect_left, insort
from dataclasses import dataclass, field

MINUTE = 60

COMPARISONS = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}
STATISTICS = {
    "Sum": sum,
    "Maximum": max,
    "Minimum": min,
    "SampleCount": len,
    "Average": lambda values: sum(values) / len(values),
}


def statistic(name: str, values: list[float]) -> float | None:
    if not values:
        return None
    if name.startswith("p"):
        return sorted(values)[math.ceil(float(name[1:]) / 100 * len(values)) - 1]
    return STATISTICS[name](values)


class Series:
    """The data points of one metric or expression, the newest first; None where one is missing."""

    def __init__(self, points: list[float | None]):
        self.points = points


def pointwise(operation):
    """In arithmetic a missing value is 0, unless all are missing. What is divided by 0 is dropped."""

    def combine(left, right):
        length = len((left if isinstance(left, Series) else right).points)
        sides = [side.points if isinstance(side, Series) else [side] * length for side in (left, right)]
        real = [side.points for side in (left, right) if isinstance(side, Series)]
        points = []
        for index, (a, b) in enumerate(zip(*sides)):
            missing = all(points[index] is None for points in real)
            divided_by_zero = operation is operator.truediv and not b
            points.append(None if missing or divided_by_zero else operation(a or 0, b or 0))
        return Series(points)

    return combine


for _name in ("add", "sub", "mul", "truediv"):
    _combine = pointwise(getattr(operator, _name))
    setattr(Series, f"__{_name}__", _combine)
    setattr(Series, f"__r{_name}__", lambda self, other, combine=_combine: combine(other, self))


def across(function):
    """Of several series one. Of a single one it would be a number, which changes with how many points are retrieved."""

    def combine(several: list[Series]) -> Series:
        columns = ([value for value in column if value is not None] for column in zip(*(s.points for s in several)))
        return Series([function(column) if column else None for column in columns])

    return combine


@dataclass
class Unknown:
    """What the documentation leaves open; an alarm has to hold whatever it is."""

    # How many more periods are retrieved than evaluated.
    more: int
    # Whether FILL fills a series that has no point at all.
    fills_empty: bool


@dataclass
class Metrics:
    """What has been published: by metric and dimension, the minute that it is stamped with and the value."""

    later: list = field(default_factory=list)
    seen: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)

    def publish(self, metric: tuple[str, str], stamp: float, seen_at: float, value: float) -> None:
        heapq.heappush(self.later, (seen_at, metric, int(stamp // MINUTE), value))

    def until(self, end: float) -> None:
        """Nothing that is stamped later."""
        self.later = [point for point in self.later if point[2] * MINUTE < end]
        heapq.heapify(self.later)

    def advance(self, now: int) -> None:
        """To this minute."""
        while self.later and self.later[0][0] <= now * MINUTE:
            _, metric, minute, value = heapq.heappop(self.later)
            insort(self.seen.setdefault(metric, []), (minute, value))

    def series(self, metric: tuple[str, str], name: str, now: int, period: int, count: int) -> Series:
        points = self.seen.get(metric, [])
        edges = [bisect_left(points, (now - index * period,)) for index in range(count + 1)]
        values = ([value for _, value in points[older:newer]] for newer, older in zip(edges, edges[1:]))
        return Series([statistic(name, list(window)) for window in values])


class Alarm:
    """One of the template's, with the intrinsic functions resolved."""

    def __init__(self, properties: dict):
        self.properties = properties
        self.periods = properties["EvaluationPeriods"]
        self.to_alarm = properties.get("DatapointsToAlarm", self.periods)
        self.missing = properties.get("TreatMissingData", "missing")
        queries = properties.get("Metrics") or [{"Id": "only", "MetricStat": {
            "Metric": properties, "Period": properties["Period"], "Stat": properties["Statistic"]}}]
        self.metrics = {query["Id"]: query["MetricStat"] for query in queries if "MetricStat" in query}
        [result] = [query for query in queries if query.get("ReturnData", True)]
        # Its syntax is Python's as well.
        self.expression = compile(result.get("Expression", result["Id"]), result["Id"], "eval")
        [period] = {metric["Period"] for metric in self.metrics.values()}
        assert period % MINUTE == 0 and period * self.periods <= 86_400, period
        self.period = period // MINUTE

    def read(self) -> set[tuple[str, str]]:
        """The metrics, each with the value of its dimension."""
        return {self.key(metric["Metric"]) for metric in self.metrics.values()}

    @staticmethod
    def key(metric: dict) -> tuple[str, str]:
        [dimension] = metric["Dimensions"]
        return metric["MetricName"], dimension["Value"]

    def points(self, metrics: Metrics, now: int, unknown: Unknown) -> list[float | None]:
        count = self.periods + unknown.more
        series = {
            name: metrics.series(self.key(metric["Metric"]), metric["Stat"], now, self.period, count)
            for name, metric in self.metrics.items()
        }

        def fill(what, value: float):
            if isinstance(what, list):
                return [fill(each, value) for each in what]
            if not unknown.fills_empty and all(point is None for point in what.points):
                return what
            return Series([value if point is None else point for point in what.points])

        functions = {"FILL": fill, "METRICS": lambda: list(series.values()), "SUM": across(sum), "MAX": across(max)}
        return eval(self.expression, {"__builtins__": {}}, functions | series).points

    def state(self, points: list[float | None], before: str) -> str:
        compare, threshold = COMPARISONS[self.properties["ComparisonOperator"]], self.properties["Threshold"]
        breaching = [None if point is None else compare(point, threshold) for point in points]
        real = [breaches for breaches in breaching if breaches is not None][: self.periods]
        filled = self.periods - len(real)
        if filled and self.missing in ("ignore", "missing") and all(real) and len(real) < self.to_alarm:
            if self.missing == "ignore":
                return before
            # What has breached for long enough, with nothing but silence since, is an alarm all the same.
            oldest = max((age for age, breaches in enumerate(breaching, start=1) if breaches), default=0)
            return "ALARM" if oldest >= self.to_alarm else "INSUFFICIENT_DATA"
        breaches = sum(real) + (filled if self.missing == "breaching" else 0)
        return "ALARM" if breaches >= self.to_alarm else "OK"

    def changes(self, metrics: Metrics, minutes: range, unknown: Unknown, state="INSUFFICIENT_DATA"):
        """Each change of its state, with the minute. The one into ALARM sends a mail."""
        for now in minutes:
            metrics.advance(now)
            before, state = state, self.state(self.points(metrics, now, unknown), state)
            if state != before:
                yield now, state


# The tables of "Configuring how CloudWatch alarms treat missing data", the oldest point first: 0 breaches not, X breaches, - is
# missing. Five points are retrieved for three; the columns are missing, ignore, breaching and notBreaching.
DOCUMENTED = {
    3: """
        0-X-X OK    OK     OK    OK
        0---- OK    OK     OK    OK
        ----- NONE  BEFORE ALARM OK
        0XX-X ALARM ALARM  ALARM ALARM
        ----X NONE  BEFORE ALARM OK
        X---- ALARM BEFORE ALARM OK
    """,
    2: """
        0-X-X ALARM ALARM  ALARM ALARM
        00X0X ALARM ALARM  ALARM ALARM
        0-X-- OK    OK     ALARM OK
        ----0 OK    OK     ALARM OK
        ----X NONE  BEFORE ALARM OK
    """,
}


def is_as_documented() -> None:
    for to_alarm, table in DOCUMENTED.items():
        for row in table.strip().splitlines():
            picture, *states = row.split()
            points = [{"0": 0, "X": 2, "-": None}[point] for point in reversed(picture)]
            for missing, expected in zip(("missing", "ignore", "breaching", "notBreaching"), states):
                alarm = Alarm({
                    "MetricName": "m", "Dimensions": [{"Value": "d"}], "Statistic": "Sum", "Period": 300,
                    "EvaluationPeriods": 3, "DatapointsToAlarm": to_alarm, "TreatMissingData": missing,
                    "ComparisonOperator": "GreaterThanThreshold", "Threshold": 1,
                })
                state = alarm.state(points, "BEFORE").replace("INSUFFICIENT_DATA", "NONE")
                assert state == expected, (to_alarm, picture, missing, state)
