"""Sentences of notebook 06: what can be spared, what training brings back, the lightest model.

Every function takes tables and numbers of the notebook and returns text that is true for either outcome. Accuracy
is in percent, its differences in points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from helpers.sentences import Row, agree, count_of, say_interval, say_number
from helpers.stats import enough


class Judges(NamedTuple):
    """The validation questions that chose no model and judge them all."""

    n: int
    n_images: int

    def can_tell(self) -> bool:
        return bool(enough(self.n, self.n_images))

    def __str__(self) -> str:
        return f"n = {self.n:,} questions about {count_of(self.n_images, 'image')}"


class Lightest(NamedTuple):
    """The lightest model within the tolerance, against the whole one."""

    name: str  # "whole" if there is none
    n_models: int  # candidates, the whole one among them
    n_choosing: int  # questions that it was chosen on
    fewer: float  # percent of the parameters that it does without
    change: dict  # points of accuracy, by the judges: estimate, low, high
    tolerance: float  # points that it may lose
    speeds: dict[int, Row]  # by questions at once: faster, low, high
    control: dict | None = None  # change of the whole model, trained on as long, where it was trained on

    def say_fewer(self) -> str:
        return f"{self.fewer:.0f} % fewer parameters"

    def say_change(self) -> str:
        return f"{say_number(self.change['estimate'], sign=True)} points {say_interval(self.change)}"

    def say_speeds(self) -> str:
        said = [f"{say_speed(speed)} on {say_batch(size)}" for size, speed in self.speeds.items()]
        return " and ".join([said[0], *(text.replace(" times as fast", " times") for text in said[1:])])

    def verdict(self) -> str:
        """What the judges say of "within the tolerance": confirmed, contradicted or open."""
        if self.change["low"] >= -self.tolerance:
            return "confirmed"
        return "contradicted" if self.change["high"] < -self.tolerance else "open"

    def sure(self) -> str:
        """How the answer to "can a lighter model answer as well?" begins, by what the judges say."""
        if self.verdict() == "open":
            return "Yes, in the estimate" if self.change["estimate"] >= -self.tolerance else "Not for certain"
        return "Yes" if self.verdict() == "confirmed" else "Not the one that was chosen"


def say_speed(row: Row) -> str:
    """How fast against the whole model: "1.05 times as fast [1.00, 1.07]"."""
    return f"{row['faster']:.2f} times as fast {say_interval(row, 2)}"


def say_batch(size: int) -> str:
    """How many questions at once: "one question", "32 at once"."""
    return "one question" if size == 1 else f"{size} at once"


def describe_helps(single: pd.DataFrame) -> str:
    """Whether the removal of any one head or layer lowers the loss on training questions.

    single: a row a head or layer: part, estimate (rise of the loss), low, high, p_corrected, n, n_clusters.
    """
    best = single.loc[single["estimate"].idxmin()]
    if not enough(best["n"], best["n_clusters"]):
        return f"{best['n']} training questions are not enough to tell whether any removal helps."
    size = f"n = {best['n']:,} training questions about {best['n_clusters']:,} images"
    behind = f"{size}; p corrected over {len(single)} heads and layers"
    helps = single[(single["estimate"] < 0) & (single["p_corrected"] < 0.05)].to_dict("records")
    if helps:
        named = ", ".join(f"{row['part']} ({row['estimate']:.3f} {say_interval(row, 3)})" for row in helps)
        return f"One at a time, the removal of {named} lowers the loss on training questions ({behind}): it helps."
    return (
        "That the removal of any one head or layer lowers the loss is not shown. The cheapest is "
        f"{best['part']}: {say_number(best['estimate'], 3, True)} {say_interval(best, 3)} ({behind})."
    )


def describe_orders(
    halfway: pd.DataFrame, ahead: Row, base: Row, free: Mapping[str, int], tolerance: float
) -> str:
    """How much accuracy is left, by the order of removal.

    halfway: a row an order (index) with removed, share, estimate, low, high. ahead: points by which the order by
    ablation beats random ones (n of them), with its interval over these and over images. base: the whole model's
    accuracy. free: by order, heads that can go within the tolerance.
    """
    if not enough(base["n"], base["n_clusters"]):
        return (
            f"{base['n']} questions about {count_of(base['n_clusters'], 'image')} are not enough questions to tell the "
            "orders apart."
        )
    said = {
        name: f"{halfway['estimate'][name]:.1f} % {say_interval(row)}" for name, row in halfway.iterrows()
    }
    removed, total = _count_removed(halfway)
    sure = "not to be told from chance"
    if ahead["low"] > 0 or ahead["high"] < 0:
        sure = f"{'better' if ahead['low'] > 0 else 'worse'} than chance"
    return (
        f"With {removed} of {total} heads removed, {base['estimate']:.1f} % {say_interval(base)} becomes "
        f"{said['ablation']} by ablation, {said['gradient']} by gradient, {said['attention']} by attention, "
        f"{said['random']} by chance (mean and interval of {count_of(int(ahead['n']), 'order')}) (n = {base['n']:,} "
        f"questions). The order by ablation is {sure}: {say_number(ahead['estimate'], sign=True)} points "
        f"{say_interval(ahead)}, interval over random orders and images. Without any further training, "
        f"{_say_tolerance(tolerance)} (in the estimate) {agree(tolerance, 'pays', 'pay')} for "
        f"{count_of(free['ablation'], 'head')} by ablation, {free['gradient']} by gradient, {free['attention']} by "
        f"attention and {free['random']} by chance."
    )


def _count_removed(halfway: pd.DataFrame) -> tuple[int, int]:
    """Heads removed, and all heads."""
    row = halfway.iloc[0]
    return int(row["removed"]), round(row["removed"] / row["share"])


def _say_tolerance(tolerance: float) -> str:
    return f"{tolerance:g} {agree(tolerance, 'point', 'points')}"


def describe_families(costs: pd.DataFrame, quarter: pd.DataFrame, share: str, layer: str) -> str:
    """Which family loses most, and whether any gains.

    costs: effects of all removals (what, removed, family, drop, low, high, n, told, significant); quarter: of these,
    the families' where a quarter of the heads is gone; share: "4 of 16 heads"; layer: the cheapest layer.
    """
    own = quarter[quarter["told"]].sort_values("drop", ascending=False).to_dict("records")
    said = [
        f"“{row['family']}”: {row['drop']:.1f} points {say_interval(row)} (n = {row['n']:,})" for row in own
    ]
    text = "No family has 10 questions on 5 images: not enough questions to tell who loses most."
    if said:
        least = f", the one that loses least {said[-1]}" if len(said) > 1 else ""
        text = f"With {share} removed (order by ablation) the family that loses most is {said[0]}{least}."
    alone = costs[(costs["what"] == "layers removed") & (costs["family"] == "all") & costs["told"]]
    if len(alone):
        row = alone.iloc[0]
        text += f" Without the cheapest layer, {layer}, all questions together lose {row['drop']:.1f} points {say_interval(row)}."
    better = costs[costs["significant"] & (costs["drop"] < 0)].sort_values("drop").to_dict("records")
    if not better:
        return f"{text} That any removal makes a family better is not shown."
    gained = "; ".join(
        f"“{row['family']}” with {_say_removed(row)}, {-row['drop']:.1f} points" for row in better[:3]
    )
    cells = f"In {len(better)} of {len(costs)} cells a removal makes the model better beyond chance"
    return f"{text} {cells}: {gained}."


def _say_removed(row: Mapping) -> str:
    """What is gone in a cell of the table: "4 heads removed"; of layers the last of those that went before it."""
    if row["what"] == "heads removed":
        return f"{count_of(int(row['removed']), 'head')} removed"
    return f"layers removed up to {row['removed'].lstrip('+').split()[-1]}"


def describe_recovery(recovery: pd.DataFrame, gains: Mapping[str, Row], judges: Judges) -> str:
    """What a short training brings back to the cut model that gains most, and what it gives the whole one.

    recovery: a row a model with before and after (points against the whole model); gains: after less before.
    """
    if not judges.can_tell():
        return f"Not enough questions to tell what a training brings back ({judges})."
    most = max((name for name in gains if name != "whole"), key=lambda name: gains[name]["estimate"])
    row, gain, control = recovery.set_index("model").loc[most], gains[most], gains["whole"]
    before, after = (say_number(row[when], sign=True) for when in ("before", "after"))
    begin = f"The most is brought back to “{most}”"
    if not gain["low"] > 0:
        begin = f"That a training brings anything back is not shown. The most, in the estimate, to “{most}”"
    return (
        f"{begin}: {before} points against the whole model before the training, {after} "
        f"after it, a gain of {say_number(gain['estimate'])} {say_interval(gain)}. The whole model, trained on just as "
        f"long, gains {say_number(control['estimate'])} {say_interval(control)} ({judges})."
    )


def describe_precision(
    tried: Mapping[str, dict], batch: int, judges: Judges, rounds: int, device: str
) -> str:
    """What lower precisions of the whole model cost and give.

    tried: by precision: faster, low, high (against fp32); change (points, with its interval); bytes (of fp32's).
    """
    doubt = "" if judges.can_tell() else " (too few questions to tell)"
    said = [
        f"{bits} is {say_speed(row)} as fp32, at {say_number(row['change']['estimate'], sign=True)} points "
        f"{say_interval(row['change'])} of accuracy{doubt} and {row['bytes']:.2f} of its bytes"
        for bits, row in tried.items()
    ]
    absent = "" if "int8" in tried else " Dynamic int8 is not available on this device."
    batches = "one question at once" if batch == 1 else f"{batch} questions at once"
    if not said:
        return f"No lower precision is available on this device ({device})."
    return f"For the whole model with {batches}, {'; '.join(said)} ({judges}; {rounds} rounds, {device}).{absent}"


def describe_lightest(found: Lightest, judges: Judges, faster: tuple[str, Row] | None, quickest: Row) -> str:
    """The lightest model within the tolerance, whether the judges confirm it, how fast it is; and the fastest of all.

    faster: the lower precision of it that is fastest within the tolerance; None: none is faster. quickest: the
    fastest model in fp32: model, faster, low, high, change (points, with its interval).
    """
    if not judges.can_tell():
        return f"Not enough questions to tell whether any lighter model answers as well ({judges}); the whole model stays."
    if found.name == "whole":
        text = f"N{_say_none(found)}: here nothing can be spared."
    else:
        holds = {
            "confirmed": "confirms",
            "contradicted": "contradicts",
            "open": "can neither confirm nor exclude",
        }
        control = ""
        if found.control is not None:
            gained = (
                f"{say_number(found.control['estimate'], sign=True)} points {say_interval(found.control)}"
            )
            control = f" The whole model, trained on just as long: {gained}."
        bits = "no lower precision of it is faster within the tolerance"
        if faster is not None:
            bits = (
                f"of its precisions, {faster[0]} is the fastest within the tolerance ({faster[1]['faster']:.2f} times "
                f"{say_interval(faster[1], 2)})"
            )
        text = (
            f"Of {found.n_models} models the lightest within {_say_tolerance(found.tolerance)} of the whole one, on the "
            f"images that choose, is “{found.name}”, with {found.say_fewer()}. The other half {holds[found.verdict()]} "
            f"that: {found.say_change()} ({judges}).{control} It measured {found.say_speeds()}; {bits}."
        )
    if quickest["model"] == found.name:
        return text
    if quickest["model"] == "whole":
        return f"{text} In fp32 no model measured faster than the whole one."
    change = quickest["change"]
    return (
        f"{text} The fastest in fp32, “{quickest['model']}”, is {say_speed(quickest)}, at "
        f"{say_number(change['estimate'], sign=True)} points {say_interval(change)}."
    )


def _say_none(found: Lightest) -> str:
    return (
        f"one of {found.n_models - 1} other models stays within {_say_tolerance(found.tolerance)} of the whole one with "
        f"fewer parameters (n = {found.n_choosing:,} questions that choose)"
    )


def describe_answer(found: Lightest, judges: Judges, whole: float, halfway: pd.DataFrame, base: Row) -> str:
    """The notebook's answer: is there a lighter model, and what is left without training?

    whole: accuracy of the whole model on the judges; halfway, base: as in `describe_orders`.
    """
    if not judges.can_tell():
        text = f"There are not enough questions to tell whether a lighter model answers as well ({judges})."
    elif found.name == "whole":
        text = f"Not here: n{_say_none(found)}."
    else:
        text = (
            f"{found.sure()}: “{found.name}” has {found.say_fewer()} than the whole model and scores {found.say_change()} against "
            f"its {whole:.1f} % ({judges} that it was not chosen on); it measured {found.say_speeds()}."
        )
    if not enough(base["n"], base["n_clusters"]):
        return text
    left = {name: f"{halfway['estimate'][name]:.1f} %" for name in ("ablation", "attention", "random")}
    removed, total = _count_removed(halfway)
    return (
        f"{text} Without further training, removing {removed} of {total} heads turns {base['estimate']:.1f} % "
        f"{say_interval(base)} into {left['ablation']} in the order by ablation, {left['attention']} in that by attention "
        f"and {left['random']} by chance."
    )
