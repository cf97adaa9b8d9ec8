"""Tries every alarm of the template against hours of metrics, in a model of CloudWatch (cloudwatch.py).

Usage: python alarms.py TEMPLATE OPERATE DEPLOY: the template with SAM's own resources translated, and the documents
that say what the alarms do and cost.

Each alarm needs stories: of a fault that lasts eight hours, for which it has to ring once, when its description says; and
of what it must not ring for. The timers are late by up to a minute, fire twice now and then, and sometimes not at all;
metrics come when and as the functions publish them: counts never as 0.
"""

import math
import random
import re
import sys
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloudwatch import MINUTE, Alarm, Metrics, Unknown, is_as_documented
from resolved import Template

HOUR = 60 * MINUTE
START = 3 * HOUR
LONG = 8 * HOUR
# A line of the log becomes a metric, and an alarm is evaluated, within this long.
LATE = 3 * MINUTE
OURS = "token-refresh"
REFRESH, RETRY, NOTIFY = "ScheduledRefresh", "RetryRefresh", "Notify"


class Day:
    """What happens in a day with a fault from START on, and what is published of it."""

    def __init__(self, template: Template, seed: int, lasts: float = LONG):
        self.random = random.Random(seed)
        self.seed = seed
        self.end = START + lasts
        self.cycle_timeout = int(template.parameters["CycleTimeout"])
        self.metrics = Metrics()
        rules = [r["Properties"] for r in template.resources().values() if r["Type"] == "AWS::Events::Rule"]
        expressions = {}
        for rule in rules:
            if "ScheduleExpression" in rule:
                trigger = re.search('"trigger": *"(.*?)"', rule["Targets"][0]["Input"])[1]
                expressions.setdefault(trigger, []).append(rule["ScheduleExpression"])
        self.sweeps, self.planned, self.timer = (
            self.fired(expressions[trigger]) for trigger in ("sweep", "planned", "timer")
        )

    def fired(self, expressions: list[str]) -> list[float]:
        times = []
        for number, minute in enumerate(minutes_of_a_day(expressions)):
            # Every other one is late by a minute, or all of them by anything up to that.
            late = (number % 2) * 59 if self.seed == 1 else self.random.uniform(0, 59) * min(self.seed, 1)
            # Never two in a row: that is what an alarm is for.
            if self.seed and (number + 2 * self.seed) % 9 == 4:
                continue
            times.append(minute * MINUTE + late)
            if self.seed and number % 7 == 3:
                times.append(times[-1] + self.random.uniform(1, 60))
        return times

    def broken(self, time: float) -> bool:
        return START <= time < self.end

    def publish(self, name: str, time: float, value: float, of: str = OURS, ran: float = 0) -> None:
        """`ran`: how long the run took that is measured by Lambda. It is stamped with its start."""
        self.metrics.publish((name, of), time, time + ran + self.random.uniform(1, LATE - MINUTE), value)


def minutes_of_a_day(expressions: list[str]) -> list[int]:
    minutes = []
    for expression in expressions:
        minute, hours, *rest = expression.removeprefix("cron(").removesuffix(")").split()
        assert rest == ["*", "*", "?", "*"], expression
        first, _, step = minute.partition("/")
        for hour in range(24) if hours == "*" else map(int, hours.split(",")):
            minutes += [hour * 60 + minute for minute in range(int(first), 60, int(step or 60))]
    return sorted(minutes)


# A story publishes what it is about, and answers from when on its alarm's delay counts.
Story = Callable[[Day], float]


def cycles_fail(day: Day) -> float:
    succeeded = [time for time in sorted(day.sweeps + day.planned) if not day.broken(time)]
    for time in succeeded:
        day.publish("CyclesSucceeded", time, 1)
    return max(time for time in succeeded if time < START)


def one_cycle_fails(day: Day) -> float:
    times = sorted(day.sweeps + day.planned)
    lost = next(at for at in range(1, len(times)) if times[at] > START and times[at + 1] - times[at - 1] < 32 * MINUTE)
    for time in times[:lost] + times[lost + 1 :]:
        day.publish("CyclesSucceeded", time, 1)
    return times[lost - 1]


def measured(name: str, value: Callable[[float], float], twice: bool = False) -> Story:
    """After each sweep, which may fire twice; `value` is of how long the fault has lasted."""

    def story(day: Day) -> float:
        for time in day.sweeps:
            for again in range(1 + twice):
                day.publish(name, time + again * MINUTE, value(time - START) if day.broken(time) else 0)
        return START

    return story


def counted(name: str, *pauses: float, by: str = "sweeps") -> Story:
    """What one row counts: at the first run, and at the first one after each pause; the last pause goes on."""

    def story(day: Day) -> float:
        tries, due = [], START
        for time in getattr(day, by):
            if due <= time < day.end:
                day.publish(name, time, 1)
                due = time + pauses[min(len(tries), len(pauses) - 1)]
                tries.append(time)
        return next(iter(tries), START)

    return story


def outage(due: int, every: float, one_shots: bool = True) -> Story:
    """So many streamers come due every so often, and while the fault lasts none can be refreshed; a one-shot repeats what failed
    as the sweeps do, unless none can be armed. A cycle stops after 20."""

    def story(day: Day) -> float:
        runs, waiting, retry_at, next_due, failed = sorted(day.sweeps), 0, 0.0, 0.0, []
        while runs:
            time = runs.pop(0)
            while next_due <= time:
                waiting, next_due = waiting + due, next_due + every
            if day.broken(time) and not failed:
                waiting = waiting or due
            if not waiting or time < retry_at:
                continue
            if not day.broken(time):
                day.publish("Refreshed", time, waiting)
                waiting = 0
                continue
            day.publish("Outages", time, min(waiting, 20))
            failed.append(time)
            retry_at = time + 15 * MINUTE
            if one_shots and len(failed) % 9:
                insort(runs, math.ceil(retry_at / MINUTE) * MINUTE + day.random.uniform(0, 59))
        return next(iter(failed), START)

    return story


def runs(function: str, healthy: float, broken: Callable[[Day], float], fails: bool = False, by: str = "sweeps") -> Story:
    """How many seconds each run takes. One that fails is repeated twice, after one and two minutes, for a quarter of an hour."""

    def story(day: Day) -> float:
        ends = []
        for begun in getattr(day, by):
            took = broken(day) if day.broken(begun) else healthy
            time = begun
            for pause in (1, 2, 0):
                failed = fails and day.broken(begun)
                day.publish("Duration", time, took * 1000, function, took)
                day.publish("Errors", time, failed, function, took)
                if day.broken(begun):
                    ends.append(time + took)
                time += took + pause * MINUTE
                if not failed or time - begun > 15 * MINUTE:
                    break
        return sorted(ends)[2 if fails else 0]

    return story


def once_in(pause: Callable[[Day], float], name: str, of: str, value: float, count: int = 1, ran: float = 0) -> Story:
    """Something every now and then, so many times within two minutes."""

    def story(day: Day) -> float:
        ends, time = [], START + 1.0
        while time < day.end:
            for number in range(count):
                day.publish(name, time + number * 2 * MINUTE / count, value, of, ran)
                ends.append(time + number * 2 * MINUTE / count + ran)
            time += pause(day)
        return ends[count - 1]

    return story


def queued(queue: str) -> Story:
    """A message at each sweep; the queue is purged in the end. Its metrics come every minute for six hours after that."""

    def story(day: Day) -> float:
        messages = [time for time in day.sweeps if day.broken(time)]
        for time in range(int(messages[0]), int(day.end) + 6 * HOUR, MINUTE):
            value = sum(message <= time < day.end for message in messages)
            day.metrics.publish(("ApproximateNumberOfMessagesVisible", queue), time, time + 5 * MINUTE, value)
        return messages[0]

    return story


def minutes(count: float) -> Callable[[Day], float]:
    return lambda _: count * MINUTE


def now_and_then(day: Day) -> float:
    return day.random.uniform(10, 25) * MINUTE


def all_but(seconds: float) -> Callable[[Day], float]:
    return lambda day: day.cycle_timeout - seconds


def age(lasted: float) -> float:
    return lasted


@dataclass
class Expected:
    """Of one alarm: the numbers that its description and the documentation share, and its stories."""

    says: tuple[str, ...]
    rings: dict[str, Story]
    # Within these minutes of what its stories answer.
    within: tuple[float, float] = (0, 0)
    # Each with how long the fault lasts.
    silent: dict[str, tuple[float, Story]] = field(default_factory=dict)


def once(says: str, story: Story) -> Expected:
    return Expected((says,), {"it goes on": story})


SWEEP = 15 + 15 + 1  # The longest between two, where one is missing.
SET_ASIDE = [15 * MINUTE * 2**times for times in range(5)] + [6 * HOUR]
PUSHED_AGAIN = [MINUTE * 2**times for times in range(6)] + [HOUR]

EXPECTED = {
    "NoCycleAlarm": Expected(
        ("45 minutes",),
        {"no cycle succeeds": cycles_fail},
        (45, 45),
        {"one fails": (LONG, one_cycle_fails)},
    ),
    "OldestDueAlarm": Expected(
        ("over half an hour",),
        {"a streamer stays due": measured("OldestDueAge", age)},
        (30, 30 + SWEEP),
        {"due until the second sweep": (29 * MINUTE, measured("OldestDueAge", age))},
    ),
    "DeadMinutesAlarm": Expected(
        ("over 15 minutes", "half an hour"),
        {"tokens were dead": measured("DeadMinutes", lambda _: 16)},
        (30, 45 + SWEEP),
        {
            "until a disconnect is confirmed": (24 * MINUTE, measured("DeadMinutes", lambda _: 40, twice=True)),
            "fifteen": (LONG, measured("DeadMinutes", lambda _: 15)),
        },
    ),
    "TwitchOutAlarm": Expected(
        ("for an hour",),
        {
            "one streamer": outage(1, 4 * HOUR),
            "a few all the time": outage(3, 15 * MINUTE),
            "many at once": outage(30, 90 * MINUTE),
            "one streamer, without one-shots": outage(1, 4 * HOUR, one_shots=False),
            "a few, without one-shots": outage(3, 15 * MINUTE, one_shots=False),
            "many at once, without one-shots": outage(30, 90 * MINUTE, one_shots=False),
        },
        (60, 80),
        {
            "one, for 45 minutes": (44 * MINUTE, outage(1, 4 * HOUR)),
            "a few all the time, for 45 minutes": (44 * MINUTE, outage(3, 15 * MINUTE)),
            "none": (0, outage(3, 15 * MINUTE)),
        },
    ),
    "HeldBackAlarm": once("", counted("HeldBack", 15 * MINUTE)),
    "NotStoredAlarm": Expected(
        (),
        {"a row that is set aside": counted("NotStored", *SET_ASIDE), "each sweep": counted("NotStored", 15 * MINUTE)},
    ),
    "UnreadableAlarm": Expected(
        (),
        {"a row that is set aside": counted("Unreadable", *SET_ASIDE), "a key": counted("Unreadable", 15 * MINUTE)},
    ),
    # Validated every 40 minutes, which is every third sweep.
    "MisplacedAlarm": once("", counted("Misplaced", 40 * MINUTE)),
    "RefusedOnlyAlarm": Expected(
        ("two hours",),
        {"all are refused": measured("RefusedOnlyAge", age)},
        (120, 120 + SWEEP),
        {"for less": (119 * MINUTE, measured("RefusedOnlyAge", age))},
    ),
    "SignalsAlarm": Expected(
        ("half an hour",),
        {"all fail": counted("SignalsFailed", 15 * MINUTE)},
        (30, 30 + 2 * SWEEP),
        {
            "two sweeps": (24 * MINUTE, counted("SignalsFailed", 15 * MINUTE)),
            "once an hour": (LONG, counted("SignalsFailed", 50 * MINUTE)),
        },
    ),
    "OutboxAgeAlarm": Expected(
        ("two hours",),
        {"a notification waits": measured("OutboxAge", age)},
        (120, 120 + SWEEP),
        {"for less": (119 * MINUTE, measured("OutboxAge", age))},
    ),
    "VapidRefusedAlarm": once("", counted("VapidRefused", *PUSHED_AGAIN, by="timer")),
    "RefreshErrorsAlarm": Expected(
        ("three", "within 90 minutes"),
        {
            "each run at once": runs(REFRESH, 1, lambda _: 2, fails=True),
            "each waits for the database": runs(REFRESH, 1, all_but(65), fails=True),
            "each is killed at its timeout": runs(REFRESH, 1, all_but(0), fails=True),
            "retries do": runs(RETRY, 1, lambda _: 2, fails=True),
        },
        silent={"one event, twice": (LONG, once_in(minutes(120), "Errors", REFRESH, 1, count=2))},
    ),
    "NotifyErrorsAlarm": Expected(
        ("three", "within an hour"),
        {"each run": runs(NOTIFY, 1, lambda _: 59, fails=True, by="timer")},
        silent={"one event, twice": (LONG, once_in(minutes(70), "Errors", NOTIFY, 1, count=2))},
    ),
    "ApiErrorsAlarm": Expected(
        ("five", "within half an hour"),
        {
            "now and then": once_in(now_and_then, "5xx", "HttpApi", 1, count=5),
            "five and no more": once_in(minutes(24 * 60), "5xx", "HttpApi", 1, count=5),
        },
        silent={"four": (LONG, once_in(minutes(35), "5xx", "HttpApi", 1, count=4))},
    ),
    "ThrottlesAlarm": Expected(
        (),
        {of: once_in(now_and_then, "Throttles", of, 1) for of in (REFRESH, RETRY, "GrantRefresh", "HealthCheck")},
    ),
    "LongCycleAlarm": Expected(
        ("last 65 seconds",),
        {"sweeps": runs(REFRESH, 1, all_but(60)), "retries": runs(RETRY, 1, all_but(60))},
        silent={"shorter ones": (LONG, runs(REFRESH, 1, all_but(70)))},
    ),
    "SlowApiAlarm": Expected(
        ("27 of",),
        {of: once_in(now_and_then, "Duration", of, 28_000, ran=28) for of in ("GrantRefresh", "HealthCheck")},
        silent={"faster": (LONG, once_in(now_and_then, "Duration", "HealthCheck", 26_000, ran=26))},
    ),
    "LongNotifyAlarm": Expected(
        ("54 of",),
        {"each run": runs(NOTIFY, 1, lambda _: 55, by="timer")},
        silent={"shorter": (LONG, runs(NOTIFY, 1, lambda _: 53, by="timer"))},
    ),
    "UndeliveredAlarm": Expected(
        (),
        {queue: queued(f"{queue}.QueueName") for queue in ("UndeliveredEvents", "UndeliveredRetries")},
        (0, 5),
    ),
}

# Each story runs with every seed, and with something else where the documentation leaves it open. With the last one all metrics
# stop when the fault is over.
TRIALS = [
    (0, Unknown(more=2, fills_empty=True)),
    (1, Unknown(more=1, fills_empty=False)),
    (2, Unknown(more=6, fills_empty=True)),
    (3, Unknown(more=1, fills_empty=True)),
    (4, Unknown(more=2, fills_empty=False)),
]
SILENCED = 4
BEFORE = 60  # Minutes before the fault, in which nothing rings.


def faults_of(alarm: Alarm, template: Template, expected: Expected):
    """What its stories show that is wrong."""
    stories = [(title, LONG, story, 1) for title, story in expected.rings.items()]
    stories += [(title, lasts, story, 0) for title, (lasts, story) in expected.silent.items()]
    unheard = alarm.read()
    for title, lasts, story, count in stories:
        for seed, unknown in TRIALS:
            day = Day(template, seed, lasts)
            since = story(day) / MINUTE
            if count and seed == SILENCED:
                day.metrics.until(day.end)
            after = (alarm.periods + unknown.more + 1) * alarm.period + HOUR // MINUTE
            minutes = range(START // MINUTE - BEFORE, math.ceil(day.end / MINUTE) + after)
            changes = list(alarm.changes(day.metrics, minutes, unknown))
            unheard -= day.metrics.seen.keys() if count else set()
            # The first evaluation is of hours in which nothing ran.
            rang = [minute - since for minute, state in changes if state == "ALARM" and minute != minutes[0]]
            early, late = expected.within
            in_time = all(early <= minute <= late + LATE / MINUTE + 2 for minute in rang)
            if len(rang) != count or not in_time:
                when = f"once, {early} to {late} minutes after" if count else "never"
                times = ", ".join(f"{minute:.0f}" for minute in rang) or "never"
                yield f"{title} (timeout {day.cycle_timeout} s, chance {seed}): is to ring {when}, and rings: {times}"
            if changes[-1][1] == "ALARM" and seed != SILENCED:
                yield f"{title} (timeout {day.cycle_timeout} s, chance {seed}): is on for good"
    yield from (f"rings in no story for {name} of {of}" for name, of in unheard)


def faults_of_rules(path: str):
    """While nothing is to run, no cycle succeeds. What NoCycle says of that, and when the rules are on (again)."""
    on, off = (Alarm(Template(path, branch).resources()["NoCycleAlarm"]["Properties"]) for branch in (0, 1))
    for _, unknown in TRIALS:
        day = Day(Template(path, 0), seed=1)
        for time in day.sweeps:
            if time >= START:
                day.publish("CyclesSucceeded", time, 1)
        changes = list(off.changes(day.metrics, range(START // MINUTE), unknown))
        changes += on.changes(day.metrics, range(START // MINUTE, 24 * 60), unknown, "OK")
        states = [state for _, state in changes]
        if states != ["OK", "ALARM", "OK"] or changes[1][0] != START // MINUTE or changes[2][0] > START // MINUTE + SWEEP:
            yield f"NoCycleAlarm: with the rules off and then on it is {changes}"


def faults_of_texts(name: str, alarm: Alarm, expected: Expected, documentation: str):
    """The description and the documentation say the same numbers, and the latter when it ends."""
    [row] = [row for row in documentation.splitlines() if row.startswith(f"| `{name}` |")]
    _, _, when, ends, _, _ = row.split("|")
    for text in (alarm.properties["AlarmDescription"], when):
        yield from (f"{name}: {text!r} does not say {number!r}" for number in expected.says if number not in text.lower())
    minutes = alarm.periods * alarm.period
    if alarm.to_alarm == 1 and LENGTHS.get(minutes, f"{minutes} minutes") != ends.strip():
        yield f"{name}: it ends after {minutes} minutes, and not after {ends.strip()}"


LENGTHS = {30: "half an hour", 60: "an hour", 120: "two hours", 420: "seven hours"}


def main(path: str, documentation: str, costs: str) -> None:
    is_as_documented()
    resources = Template(path, 0).resources()
    alarms = {name: Alarm(r["Properties"]) for name, r in resources.items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    faults = [f"{name} has no stories, or is no alarm of the template" for name in sorted(alarms.keys() ^ EXPECTED.keys())]
    faults += faults_of_rules(path)
    for name in sorted(alarms.keys() & EXPECTED.keys()):
        faults += faults_of_texts(name, alarms[name], EXPECTED[name], Path(documentation).read_text(encoding="utf-8"))
        for timeout in ("300", "900") if REFRESH in {of for _, of in alarms[name].read()} else ("300",):
            template = Template(path, 0, {"CycleTimeout": timeout})
            alarm = Alarm(template.resources()[name]["Properties"])
            faults += [f"{name}: {fault}" for fault in faults_of(alarm, template, EXPECTED[name])]
    read = sum(len(alarm.metrics) for alarm in alarms.values())
    if f"| $0.10 per metric of an alarm, {read} | {read / 10:.2f} |" not in Path(costs).read_text(encoding="utf-8"):
        faults.append(f"{costs}: alarms read {read} metrics")
    print(*faults, f"alarms: {len(alarms)}, {len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


main(*sys.argv[1:])
