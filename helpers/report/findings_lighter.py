"""Sentences of notebook 06: what can be spared, what training brings back, the lightest model.

Every function takes tables and numbers of the notebook and returns text that is true for either outcome.
Accuracy is in percent, its differences in points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from helpers.report.sentences import Row, agree, count_of, say_interval, say_number
from helpers.stats.cluster_robust import has_enough_data


class Judges(NamedTuple):
    """The validation questions that chose no model and judge them all."""

    n: int
    n_images: int

    def can_tell(self) -> bool:
        return bool(has_enough_data(self.n, self.n_images))

    def __str__(self) -> str:
        return f"n = {count_of(self.n, 'question')} about {count_of(self.n_images, 'image')}"


class Lightest(NamedTuple):
    """The lightest model within the tolerance, against the whole one."""

    name: str  # "whole" if there is none
    n_models: int  # candidates, the whole one among them
    n_choosing: int  # questions that it was chosen on
    fewer: float  # percent of the parameters that it does without
    change: dict  # points of accuracy, by the judges: estimate, low, high
    tolerance: float  # points that it may lose
    speeds: dict[int, Row]  # by questions at once: faster, low, high
    control: dict | None = (
        None  # change of the whole model, trained on as long, where it was trained on
    )

    def say_fewer(self) -> str:
        """A single head of many is less than 1 %, and not "0 %"."""
        return f"{self.fewer:{'.0f' if self.fewer >= 1 else '.1g'}} % fewer parameters"

    def say_speeds(self) -> str:
        said = [f"{say_speed(speed)} on {say_batch(size)}" for size, speed in self.speeds.items()]
        return " and ".join(
            [said[0], *(text.replace(" times as fast", " times") for text in said[1:])]
        )

    def verdict(self) -> str:
        """What the judges say of "within the tolerance": confirmed, contradicted or open."""
        if self.change["low"] >= -self.tolerance:
            return "confirmed"
        return "contradicted" if self.change["high"] < -self.tolerance else "open"

    def sure(self) -> str:
        """How the answer to "can a lighter model answer as well?" begins, by what the judges say."""
        if self.verdict() == "open":
            return (
                "Yes, in the estimate"
                if self.change["estimate"] >= -self.tolerance
                else "Not for certain"
            )
        return "Yes" if self.verdict() == "confirmed" else "Not the one that was chosen"


def say_points(row: Row) -> str:
    """A difference in accuracy: "-0.8 points [-1.2, -0.3]"."""
    return f"{say_number(row['estimate'], sign=True)} points {say_interval(row)}"


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
    if not has_enough_data(best["n"], best["n_clusters"]):
        few = f"{count_of(best['n'], 'training question')} {agree(best['n'], 'is', 'are')}"
        return f"{few} not enough to tell whether any removal helps."
    size = f"n = {best['n']:,} training questions about {best['n_clusters']:,} images"
    behind = f"{size}; p corrected over {len(single)} heads and layers"
    helps = single[(single["estimate"] < 0) & (single["p_corrected"] < 0.05)].to_dict("records")
    if helps:
        named = [
            f"{row['part']} ({say_number(row['estimate'], 3)} {say_interval(row, 3)})"
            for row in helps
        ]
        lowers = f"the removal of {', '.join(named)} lowers the loss on training questions"
        return f"One at a time, {lowers} ({behind}): it helps."
    return (
        "That the removal of any one head or layer lowers the loss is not shown. The cheapest is "
        f"{best['part']}: {say_number(best['estimate'], 3, True)} {say_interval(best, 3)} ({behind})."
    )


def describe_orders(
    halfway: pd.DataFrame, ahead: Row, base: Row, free: Mapping[str, int], tolerance: float
) -> str:
    """How much accuracy is left, by the order of removal.

    halfway: a row an order (index) with removed, share, estimate, low, high. ahead: points by which the order
    by ablation beats random ones (n of them), with its interval over these and over images (NaN of a single
    one). base: the whole model's accuracy. free: by order, heads that can go within the tolerance.
    """
    if not has_enough_data(base["n"], base["n_clusters"]):
        few = f"{count_of(base['n'], 'question')} about {count_of(base['n_clusters'], 'image')}"
        return f"{few} {agree(base['n'], 'is', 'are')} not enough to tell the orders apart."
    said = {
        name: f"{row['estimate']:.1f} % {say_interval(row)}" for name, row in halfway.iterrows()
    }
    removed, total = _count_removed(halfway)
    draws, over = "a single order", ""
    if ahead["n"] > 1:
        draws = f"mean and interval of {int(ahead['n'])} orders"
        over = ", interval over random orders and images"
    sure = "not to be told from chance"
    if ahead["low"] > 0 or ahead["high"] < 0:
        sure = f"{'better' if ahead['low'] > 0 else 'worse'} than chance"
    return (
        f"With {removed} of {total} heads removed, {base['estimate']:.1f} % {say_interval(base)} becomes "
        f"{said['ablation']} by ablation, {said['gradient']} by gradient, {said['attention']} by attention, "
        f"{said['random']} by chance ({draws}) (n = {base['n']:,} questions). The order by ablation is "
        f"{sure}: {say_points(ahead)}{over}. Without any further training, {_say_tolerance(tolerance)} (in "
        f"the estimate) {agree(tolerance, 'pays', 'pay')} for {count_of(free['ablation'], 'head')} by "
        f"ablation, {free['gradient']} by gradient, {free['attention']} by attention and {free['random']} by "
        "chance."
    )


def _count_removed(halfway: pd.DataFrame) -> tuple[int, int]:
    """Heads removed, and all heads."""
    row = halfway.iloc[0]
    return int(row["removed"]), round(row["removed"] / row["share"])


def _say_tolerance(tolerance: float) -> str:
    return f"{tolerance:g} {agree(tolerance, 'point', 'points')}"


def describe_families(costs: pd.DataFrame, quarter: pd.DataFrame, share: str, layer: str) -> str:
    """Which family loses most, and whether any gains.

    costs: effects of all removals (what, removed, family, drop, low, high, n, told, significant); quarter: of
    these, the families' with a quarter of the heads gone; share: "4 of 16 heads"; layer: the cheapest layer.
    """
    text = _say_losers(quarter[quarter["told"]], share)
    alone = costs[(costs["what"] == "layers removed") & (costs["family"] == "all") & costs["told"]]
    if len(alone):
        lost = _say_lost(alone.iloc[0])
        text += f" Without the cheapest layer, {layer}, all questions together lose {lost}."
    better = (
        costs[costs["significant"] & (costs["drop"] < 0)].sort_values("drop").to_dict("records")
    )
    if not better:
        return f"{text} That any removal makes a family better is not shown."
    said = [
        f"“{row['family']}” with {_say_removed(row)}, {-row['drop']:.1f} points"
        for row in better[:3]
    ]
    cells = f"In {len(better)} of {len(costs)} cells a removal makes the model better beyond chance"
    return f"{text} {cells}: {'; '.join(said)}."


def _say_losers(own: pd.DataFrame, share: str) -> str:
    """The families that lose most and least, if any loses; own: effects on families with enough questions."""
    if own.empty:
        return (
            "No family has 10 questions on 5 images: not enough questions to tell who loses most."
        )
    rows = own.sort_values("drop", ascending=False).to_dict("records")
    begin, most = f"With {share} removed (order by ablation)", rows[0]
    if most["drop"] <= 0:
        gain = {"estimate": -most["drop"], "low": -most["high"], "high": -most["low"]}
        least = f"“{most['family']}” gains least: {say_points(gain)} (n = {most['n']:,})"
        return f"{begin} no family loses accuracy in the estimate; {least}."
    said = [f"“{row['family']}”: {_say_lost(row)} (n = {row['n']:,})" for row in rows]
    least = f", the one that loses least {said[-1]}" if len(said) > 1 else ""
    return f"{begin} the family that loses most is {said[0]}{least}."


def _say_lost(row: Row) -> str:
    return f"{say_number(row['drop'])} points {say_interval(row)}"


def _say_removed(row: Mapping) -> str:
    """What is gone in a cell of the table: "4 heads removed"; of layers the last of those that went."""
    if row["what"] == "heads removed":
        return f"{count_of(int(row['removed']), 'head')} removed"
    return f"layers removed up to {row['removed'].lstrip('+').split()[-1]}"


def describe_recovery(recovery: pd.DataFrame, gains: Mapping[str, Row], judges: Judges) -> str:
    """What a short training brings back to the cut model that gains most, and what it gives the whole one.

    recovery: a row a model with before and after (points against the whole model); gains: after less before.
    """
    if not judges.can_tell():
        return f"Not enough questions to tell what a training brings back ({judges})."
    most = max(
        (name for name in gains if name != "whole"), key=lambda name: gains[name]["estimate"]
    )
    row, gain, control = recovery.set_index("model").loc[most], gains[most], gains["whole"]
    before, after = (say_number(row[when], sign=True) for when in ("before", "after"))
    begin = f"The most is brought back to “{most}”"
    if not gain["low"] > 0:
        begin = f"That a training brings anything back is not shown. The most, in the estimate, to “{most}”"
    return (
        f"{begin}: {before} points against the whole model before the training, {after} after it, a gain of "
        f"{say_number(gain['estimate'])} {say_interval(gain)}. The whole model, trained on just as long, "
        f"gains {say_number(control['estimate'])} {say_interval(control)} ({judges})."
    )


def describe_precision(
    tried: Mapping[str, dict], batch: int, judges: Judges, rounds: int, device: str
) -> str:
    """What lower precisions of the whole model cost and give.

    tried: by precision: faster, low, high (against fp32); change (points, with its interval); bytes (ratio).
    """
    doubt = "" if judges.can_tell() else " (too few questions to tell)"
    said = [
        f"{bits} is {say_speed(row)} as fp32, at {say_points(row['change'])} of accuracy{doubt} and "
        f"{row['bytes']:.2f} of its bytes"
        for bits, row in tried.items()
    ]
    absent = "" if "int8" in tried else " Dynamic int8 is not available on this device."
    begin = (
        f"For the whole model with {'one question' if batch == 1 else f'{batch} questions'} at once"
    )
    if not said:
        return f"No lower precision is available on this device ({device})."
    return f"{begin}, {'; '.join(said)} ({judges}; {rounds} rounds, {device}).{absent}"


def describe_lightest(
    found: Lightest, judges: Judges, faster: tuple[str, Row] | None, quickest: Row
) -> str:
    """The lightest model within the tolerance, whether the judges confirm it, its speed; the fastest of all.

    faster: the lower precision of it that is fastest within the tolerance; None: none is faster. quickest:
    the fastest model in fp32: model, faster, low, high, change (points, with its interval).
    """
    if not judges.can_tell():
        few = "Not enough questions to tell whether any lighter model answers as well"
        return f"{few} ({judges}); the whole model stays."
    text = f"N{_say_none(found)}: here nothing can be spared."
    if found.name != "whole":
        text = _say_chosen(found, judges, faster)
    if quickest["model"] == found.name:
        return text
    if quickest["model"] == "whole":
        return f"{text} In fp32 no model measured faster than the whole one."
    speed = f"{say_speed(quickest)}, at {say_points(quickest['change'])}"
    return f"{text} The fastest in fp32, “{quickest['model']}”, is {speed}."


def _say_chosen(found: Lightest, judges: Judges, faster: tuple[str, Row] | None) -> str:
    holds = {
        "confirmed": "confirms", "contradicted": "contradicts", "open": "can neither confirm nor exclude",
    }[found.verdict()]  # fmt: skip
    control = ""
    if found.control is not None:
        control = f" The whole model, trained on just as long: {say_points(found.control)}."
    bits = "no lower precision of it is faster within the tolerance"
    if faster is not None:
        name, speed = faster
        times = f"{speed['faster']:.2f} times {say_interval(speed, 2)}"
        bits = f"of its precisions, {name} is the fastest within the tolerance ({times})"
    return (
        f"Of {found.n_models} models the lightest within {_say_tolerance(found.tolerance)} of the whole one, "
        f"on the images that choose, is “{found.name}”, with {found.say_fewer()}. The other half {holds} "
        f"that: {say_points(found.change)} ({judges}).{control} It measured {found.say_speeds()}; {bits}."
    )


def _say_none(found: Lightest) -> str:
    return (
        f"one of {found.n_models - 1} other models stays within {_say_tolerance(found.tolerance)} of the "
        f"whole one with fewer parameters (n = {found.n_choosing:,} questions that choose)"
    )


def describe_answer(
    found: Lightest, judges: Judges, whole: float, halfway: pd.DataFrame, base: Row
) -> str:
    """The notebook's answer: is there a lighter model, and what is left without training?

    whole: accuracy of the whole model on the judges; halfway, base: as in `describe_orders`.
    """
    if not judges.can_tell():
        text = f"There are not enough questions to tell whether a lighter model answers as well ({judges})."
    elif found.name == "whole":
        text = f"Not here: n{_say_none(found)}."
    else:
        text = (
            f"{found.sure()}: “{found.name}” has {found.say_fewer()} than the whole model and scores "
            f"{say_points(found.change)} against its {whole:.1f} % ({judges} that it was not chosen on); it "
            f"measured {found.say_speeds()}."
        )
    if not has_enough_data(base["n"], base["n_clusters"]):
        return text
    left = {
        name: f"{halfway['estimate'][name]:.1f} %" for name in ("ablation", "attention", "random")
    }
    removed, total = _count_removed(halfway)
    return (
        f"{text} Without further training, removing {removed} of {total} heads turns "
        f"{base['estimate']:.1f} % {say_interval(base)} into {left['ablation']} in the order by ablation, "
        f"{left['attention']} in that by attention and {left['random']} by chance."
    )
