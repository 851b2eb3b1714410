"""The recommendation is the optimum of the law it goes by, with the cost of serving in it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.planning.recommend import Demand, Option, Recommendation, recommend
from redraft.planning.recommend_text import recommendation_json, recommendation_lines
from redraft.planning.serving_cost import HARDWARE, Calls, hardware, writing
from redraft.scaling.fit import fit
from redraft.scaling.laws.parametric import Law
from redraft.scaling.loss_surface import surface
from redraft.scaling.records import Point, load_points
from redraft.scaling.results import Fits

DEVICE = HARDWARE["h100"]
LAWS = {
    "ar": Law(1.7, 400.0, 420.0, 0.34, 0.28),
    "mdlm": Law(1.8, 650.0, 700.0, 0.34, 0.28),
    "esolm": Law(1.8, 900.0, 800.0, 0.34, 0.28),
}
BUDGETS = np.geomspace(1e18, 1e20, 5)


def best_size(law: Law, flops: float) -> float:
    """Hoffmann et al. 2022, eq. 4, with C = 6 N D."""
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    return float(ratio * (flops / 6) ** law.allocation)


def planted() -> Fits:
    points = []
    for family, law in LAWS.items():
        for flops in BUDGETS:
            for factor in (0.4, 0.63, 1.0, 1.6, 2.5):
                params = best_size(law, flops) * factor
                tokens = flops / (6 * params)
                loss = float(law.at(np.array(params), np.array(tokens)))
                kind = "exact" if family == "ar" else "bound"
                points.append(
                    Point(family, params, tokens, flops, loss, budget=flops, convention="6ND", loss_kind=kind)
                )
    return fit(points, resamples=40)


@pytest.fixture(scope="module")
def fits() -> Fits:
    return planted()


def option(found: Recommendation, family: str, steps: int | None = None) -> Option:
    return next(o for o in found.options if o.family == family and steps in (None, o.steps))


def test_without_serving_the_best_size_is_the_closed_form(fits: Fits) -> None:
    found = recommend(fits, Demand(budget=4e20), DEVICE)
    for family, law in LAWS.items():
        own = option(found, family)
        assert own.params == pytest.approx(best_size(law, 4e20), rel=1e-3)
        assert own.params * own.tokens * 6 == pytest.approx(4e20, rel=1e-6)
        least = float(law.at(np.array(own.params), np.array(own.tokens)))
        assert own.loss.value == pytest.approx(least, rel=1e-5) and own.beyond == pytest.approx(4.0, rel=1e-6)


def test_with_serving_no_other_size_is_better(fits: Fits) -> None:
    """Over a grid a thousandth apart; the budget is spent to the end, on a smaller model and more tokens."""
    demand = Demand(budget=1e20, generate=2e11, length=512, steps=(32,))
    found, plain = recommend(fits, demand, DEVICE), recommend(fits, Demand(budget=1e20), DEVICE)
    for family, law in LAWS.items():
        own = option(found, family)
        per_token = writing(family, None, 512, 32).flops(2.0) / 512
        sizes = own.params * np.exp(np.arange(-2000, 2000) * 1e-3)
        tokens = (1e20 - per_token * 2e11 * sizes) / (6 * sizes)
        losses = law.at(sizes[tokens > 0], tokens[tokens > 0])
        assert own.loss.value <= losses.min() * (1 + 1e-5)
        assert own.total_flops == pytest.approx(1e20, rel=1e-6)
        assert own.params < option(plain, family).params and own.serving_flops > 0


def test_a_quality_is_reached_at_the_least_cost(fits: Fits) -> None:
    found = recommend(fits, Demand(quality=2.6, generate=1e11, length=512, steps=(32,)), DEVICE)
    for family, law in LAWS.items():
        own = option(found, family)
        assert float(law.at(np.array(own.params), np.array(own.tokens))) == pytest.approx(2.6, rel=1e-4)
        sizes = own.params * np.exp(np.arange(-1000, 1000) * 1e-3)
        room = 2.6 - law.E - law.A / sizes**law.alpha
        sizes, room = sizes[room > 0], room[room > 0]
        per_token = writing(family, None, 512, 32).flops(2.0) / 512
        cost = 6 * sizes * (law.B / room) ** (1 / law.beta) + per_token * 1e11 * sizes
        assert own.total_flops <= cost.min() * (1 + 1e-3)


def test_a_quality_below_the_irreducible_loss_has_no_option(fits: Fits) -> None:
    found = recommend(fits, Demand(quality=1.75, steps=(32,)), DEVICE)
    assert found.chosen and {o.family for o in found.options} == {"ar"}
    with pytest.raises(UserError, match="irreducible losses: ar"):
        recommend(fits, Demand(quality=1.5), DEVICE)


def test_a_latency_bounds_the_size_and_no_size_within_it_is_better(fits: Fits) -> None:
    free = recommend(fits, Demand(budget=1e20, steps=(16, 64)), DEVICE)
    assert free.chosen and free.chosen.family == "ar"
    limit = free.chosen.seconds / 3
    tight = recommend(fits, Demand(budget=1e20, latency=limit, steps=(16, 64)), DEVICE)
    own = option(tight, "ar")
    assert own.seconds == pytest.approx(limit, rel=1e-6) and own.params == pytest.approx(
        free.chosen.params / 3, rel=1e-3
    )
    sizes = own.params * np.linspace(0.5, 1, 500)
    assert own.loss.value <= LAWS["ar"].at(sizes, 1e20 / (6 * sizes)).min() * (1 + 1e-5)
    assert all(o.seconds <= limit and not o.misses for o in tight.options)


def test_a_latency_that_left_to_right_cannot_keep_gives_the_work_to_others(fits: Fits) -> None:
    """A call reads all weights: a thousand calls in 3 ms allow few parameters, one call many."""
    tight = recommend(fits, Demand(budget=1e20, latency=3e-3, steps=(1,)), DEVICE)
    assert tight.chosen and tight.chosen.family == "mdlm" and tight.chosen.seconds <= 3e-3
    assert option(tight, "ar").loss.value > tight.chosen.loss.value


def test_what_writing_a_text_costs() -> None:
    """A 1 GFLOP-a-token pass: left to right 1 a token, diffusion a pass over all a step, Eso-LM two over each token."""
    assert writing("ar", None, 100, 7).flops(1e9) == 100e9
    assert writing("mdlm", None, 100, 7).flops(1e9) == 700e9
    assert writing("esolm", None, 100, 7).flops(1e9) == pytest.approx(200e9)
    assert writing("another", "exact", 100, 7).calls == writing("another", None, 100, 7).calls == 100
    assert writing("another", "bound", 100, 7).calls == 7
    slow = writing("ar", "exact", 100, 7).seconds(
        1e9, 2e9, DEVICE
    )  # one token a call: reading the weights is what takes time
    assert slow == pytest.approx(100 * 2e9 / DEVICE.bandwidth)
    fast = writing("mdlm", "bound", 1000, 7).seconds(1e9, 2e9, DEVICE)
    assert fast == pytest.approx(7 * 1000 * 2e9 / DEVICE.rate)


@pytest.mark.parametrize("name", ["published:scaling-beyond", "published:smdm"])
def test_a_law_derived_from_optima_has_these_optima(name: str) -> None:
    fits = fit(load_points(name), resamples=40)
    for family, fitted in fits.families.items():
        s, laws = surface(family, fitted), fitted.laws
        assert not s.fitted and s.law.E == 0 and laws.params and laws.loss
        # Where C = cost N D holds at both ends of the law: the derived optimum is the law's, up to how cost varies.
        middle = math.exp(np.mean([math.log(m.flops) for m in laws.minima]))
        found = option(recommend(fits, Demand(budget=middle), DEVICE), family)
        assert found.params == pytest.approx(float(laws.params.at(middle)), rel=0.02)
        assert found.loss.value == pytest.approx(float(laws.loss.at(middle)), rel=1e-3)
        assert found.loss.low and found.loss.high and found.loss.low < found.loss.value < found.loss.high


def test_uncertainty_grows_with_distance(fits: Fits) -> None:
    published = fit(load_points("published:scaling-beyond"), resamples=40)
    widths = []
    for budget in (3e19, 1e21, 1e23):
        loss = option(recommend(published, Demand(budget=budget), DEVICE), "ar").loss
        assert loss.low and loss.high
        widths.append(math.log(loss.high / loss.low))
    assert widths == sorted(widths) and widths[2] > 2 * widths[0]


def test_what_is_not_known_is_said(fits: Fits) -> None:
    told = "\n".join(recommendation_lines(recommend(fits, Demand(budget=1e23, latency=1.0), DEVICE), "a study"))
    for words in (
        "times outside those that were fitted",
        "upper bounds",
        "likelihood does not see it",
        "Repeated data",
    ):
        assert words in told
    assert "derived from optima" not in told  # these laws were fitted to runs


def test_json_is_strict_and_names_the_choice(fits: Fits) -> None:
    found = recommendation_json(recommend(fits, Demand(budget=1e20, latency=5.0), DEVICE))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["chosen"]["family"] == "ar" and again["chosen"] == again["options"][0]
    assert {"params", "tokens", "steps", "loss", "training_flops", "serving_flops", "total_flops"} <= set(
        again["chosen"]
    )


def test_calls_are_weighed_by_the_quality_that_was_measured_at_them(fits: Fits) -> None:
    """Without a frontier 16 and 1024 calls of a family have one loss, and it says so; with one, few calls pay."""
    demand = Demand(budget=float(BUDGETS[2]), steps=(16, 1024))
    plain = recommend(fits, demand, DEVICE)
    few, many = (option(plain, "esolm", steps) for steps in (16, 1024))
    assert few.loss.value == pytest.approx(many.loss.value) and few.sampling_loss is None
    assert "The number of calls is not weighed" in "\n".join(recommendation_lines(plain, "a study"))
    assert "By likelihood alone" in recommendation_lines(plain, "a study")[0]
    curves = {"mdlm": [(1 / 64, 3.0), (1.0, 2.4)], "esolm": [(1 / 64, 9.0), (1.0, 2.5)], "ar": [(1.0, 2.0)]}
    found = recommend(fits, demand, DEVICE, Calls(curves, "the judge's nats"))
    assert option(found, "esolm", 16).sampling_loss == pytest.approx(6.5)
    assert option(found, "mdlm", 1024).sampling_loss == 0.0
    ranks = [o.loss.value + (o.sampling_loss or 0.0) for o in found.options]
    assert ranks == sorted(ranks) and found.options[-1].family == "esolm" and found.options[-1].steps == 16
    text = "\n".join(recommendation_lines(found, "a study"))
    assert "6.500" in text and "Lost by few calls: the judge's nats" in text


def test_a_quality_is_that_of_the_samples_where_their_loss_was_measured(fits: Fits) -> None:
    """A model whose samples lose .1 nats by few calls must be .1 better, and costs what that costs."""
    calls = Calls({"mdlm": [(1 / 64, 2.5), (1.0, 2.4)], "ar": [(1.0, 2.0)]}, "the judge's nats")
    ask = lambda quality, calls=None: recommend(fits, Demand(quality=quality, steps=(16, 1024)), DEVICE, calls)
    found = ask(2.5, calls)
    few, many = (option(found, "mdlm", steps) for steps in (16, 1024))
    assert few.loss.value == pytest.approx(2.4) and many.loss.value == pytest.approx(2.5)
    assert (
        few.total_flops == pytest.approx(option(ask(2.4), "mdlm", 16).total_flops)
        and few.total_flops > many.total_flops
    )
    assert not few.misses and found.options.index(many) < found.options.index(few)
    assert found.options[-1].family == "esolm"  # whose calls nobody measured


def test_a_family_whose_calls_nobody_measured_comes_after_the_others(fits: Fits) -> None:
    curves = {"mdlm": [(1 / 64, 3.0), (1.0, 2.4)]}
    found = recommend(fits, Demand(budget=float(BUDGETS[2]), steps=(16,)), DEVICE, Calls(curves, "measured"))
    assert found.options[0].family == "mdlm" and option(found, "ar").sampling_loss is None


def test_quality_between_measured_calls_is_interpolated_and_never_extrapolated_to_fewer() -> None:
    calls = Calls({"mdlm": [(1 / 16, 4.0), (1 / 4, 3.0), (1.0, 2.5)]}, "")
    assert calls.lost("mdlm", 1 / 8) == pytest.approx(1.0) and calls.lost("mdlm", 1 / 4) == pytest.approx(0.5)
    assert calls.lost("mdlm", 1 / 32) is None and calls.lost("mdlm", 2.0) == 0.0 and calls.lost("duo", 1.0) is None


def test_laws_far_outside_what_was_fitted_are_no_rows_like_any_other(fits: Fits) -> None:
    """Generating a trillion tokens within 1e20 FLOPs asks for models that nobody trained."""
    found = recommend(fits, Demand(budget=1e20, generate=1e12, length=1024, steps=(1024,)), DEVICE)
    own = option(found, "mdlm")
    assert own.far and own.loss.low is None and found.chosen is not own
    lines = recommendation_lines(found, "a study")
    assert not any(line.startswith("MDLM") for line in lines)
    (told,) = [line for line in lines if line.startswith("Not offered, for no law was fitted near it")]
    assert "MDLM in 1024 steps" in told and "outside the study" in told


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (Demand(), "needs --budget"),
        (Demand(budget=-1.0), "--budget is -1"),
        (Demand(quality=math.nan), "--quality is nan"),
        (Demand(budget=1e20, latency=0.0), "--latency is 0"),
        (Demand(budget=1e20, generate=-5.0), "--generate is -5"),
        (Demand(budget=1e20, steps=()), "--sampling-steps"),
    ],
)
def test_impossible_demands_are_refused_by_name(demand: Demand, message: str, fits: Fits) -> None:
    with pytest.raises(UserError, match=message):
        recommend(fits, demand, DEVICE)


def test_unknown_hardware_is_refused_with_the_known() -> None:
    with pytest.raises(UserError, match="Did you mean 'h100'"):
        hardware("h10")


def test_size_and_tokens_outside_the_runs_count_as_outside(fits: Fits) -> None:
    """A budget within the study's, spent on a model far smaller than any that was trained and on far more tokens."""
    demand = Demand(budget=float(BUDGETS[-1]), latency=1e-5)
    found = recommend(fits, demand, DEVICE)
    own = option(found, "ar")
    runs = fits.families["ar"]
    assert own.tokens > 10 * runs.trained[1] and own.params < runs.sizes[0] / 10
    ratios = {"tokens": own.tokens / runs.trained[1], "size": runs.sizes[0] / own.params}
    assert own.beyond == pytest.approx(max(ratios.values())) and own.beyond_in == max(ratios, key=lambda k: ratios[k])
    assert own.loss.low is None and own.loss.high is None
    told = "\n".join(recommendation_lines(found, "a study"))
    assert f"{own.beyond_in} {own.beyond:.3g}x outside the study" in told
    first = found.options[0]
    assert f"Outside the study, {first.beyond_in} {first.beyond:.3g}x: a guess." in told.splitlines()[0]
    assert "times outside those that were fitted" in told


def test_the_optimum_of_a_budget_that_was_trained_is_not_outside(fits: Fits) -> None:
    for own in recommend(fits, Demand(budget=float(BUDGETS[2])), DEVICE).options:
        assert own.beyond == 1 and own.beyond_in == ""
