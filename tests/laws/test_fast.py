"""Fast samplers have the law of slow ones: whole chains enumerated, calls counted, rows asked for no more than needed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from redraft.families.base import DiffusionFamily, build
from redraft.families.duo import Duo
from redraft.families.mdlm import MDLM
from redraft.network import head
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.kappa import even_times
from redraft.noise.schedules import SCHEDULES
from redraft.sampling.ancestral import Ancestral, showing_up
from redraft.sampling.base import Denoiser, Prediction, calls
from redraft.sampling.first_hitting import FirstHitting
from redraft.types import Batch, Canvas, last
from tests.definitions import chain, posterior, whole_loss
from tests.laws.cases import WITH_CLOCK, Case
from tests.laws.test_chain import at, clocked
from tests.laws.test_sampling import blank, small_network
from tests.rounding import CLOSE
from tests.world import L, V, states

KEY = Key.of(17)
ROWS = 20_000


def law_of_the_chain(family: DiffusionFamily, case: Case, steps: int) -> Tensor:
    """The law [K^L] of `steps` steps of the definition: posteriors of the oracle's prediction, state by state, multiplied."""
    count = family.marginal(torch.zeros(1, 1, dtype=torch.int64), at(0.5)).shape[-1]
    seen = states(count)
    prior = torch.bincount(family.sample_noise(at(1.0, 600), grid_of(600)).flatten(), minlength=count).double() / 600
    law = prior[seen].prod(-1)
    grid = even_times(steps).tolist()
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        p0 = family.interpret(case.oracle.trunk(family.view(seen, at(t, len(seen)))), seen).exp()
        step = family.posterior(p0, seen, at(t, len(seen)), at(s, len(seen)))  # [S, L, K]
        law = sum(law[i] * torch.stack([step[i, p][seen[:, p]] for p in range(L)]).prod(0) for i in range(len(seen)))
    return law


def grid_of(n: int):  # type: ignore[no-untyped-def]
    return lambda purpose: ((torch.arange(n).double() + 0.5) / n)[:, None]


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_ancestral_samples_have_the_law_of_the_chain(case: Case, steps: int) -> None:
    """Chi-square of 20,000 texts against the enumerated law of the very chain, bias of few steps included, at 1e-5."""
    family = clocked(case)
    law = law_of_the_chain(family, case, steps)
    with torch.no_grad():
        tokens = last(Ancestral(steps)(Denoiser(case.oracle, family), blank(ROWS), KEY)).tokens
    assert follows(tokens, law)


def follows(tokens: Tensor, law: Tensor) -> bool:
    """Whether the counts of texts are those of `law` [K^L], at 1e-5; the rare ones together."""
    count = round(len(law) ** (1 / L))
    number = (tokens * torch.tensor([count**2, count, 1])).sum(1)
    expected, observed = law * ROWS, torch.bincount(number, minlength=len(law)).double()
    assert float(observed[expected < 1e-9].sum()) == 0
    common = expected >= 5
    rare = expected[~common].sum()
    pairs = torch.cat([((observed - expected) ** 2 / expected)[common],
                       ((observed[~common].sum() - rare) ** 2 / rare.clamp(min=1e-9))[None]])  # fmt: skip
    return float(pairs.sum()) < stats.chi2.isf(1e-5, len(pairs) - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_show_up_in_each_step_as_often_as_the_schedule_says(schedule: str) -> None:
    """On an even grid of uniforms, to its spacing."""
    n, grid = 10_000, even_times(7)
    step = showing_up((torch.arange(n).double() + 0.5)[None] / n, SCHEDULES[schedule](), grid)
    alpha = SCHEDULES[schedule]()(grid)[0]
    share = torch.bincount(step.flatten(), minlength=7).double() / n
    expected = alpha.diff()
    expected[0] += alpha[0]  # log_linear leaves some of the text at t = 1, which absorbing families refuse
    assert torch.allclose(share, expected, atol=1.5 / n)


def test_calls_are_the_steps_in_which_something_happens() -> None:
    step = torch.tensor([[5, -1, 2, 5, 9], [-1, -1, -1, 0, 0], [3, 3, 3, 3, 3]])
    assert calls(step).tolist() == [[1, -1, 0, 1, 2], [-1, -1, -1, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("steps", [3, 16, 400])
def test_forwards_are_as_many_as_steps_in_which_the_slowest_row_writes(steps: int) -> None:
    """The histogram of forwards of one row: the number of different steps that 11 tokens fall into, as in a chain that
    skips empty steps. Counted against the draws themselves, row by row, then in a batch."""
    family, length, rows = MDLM(V), 11, 40
    u = counter_rng.field(KEY, torch.arange(rows), length)("move")
    distinct = [len(set(row)) for row in showing_up(u, family.schedule, even_times(steps)).tolist()]
    alone = []
    for row in range(rows):
        denoiser = Denoiser(small_network(), family)
        canvas = Canvas(torch.zeros(row + 1, length, dtype=torch.int64), torch.ones(row + 1, length, dtype=torch.bool))
        canvas.fixed[row] = False  # the others are given, and cost nothing
        last(Ancestral(steps)(denoiser, canvas, KEY))
        alone.append(denoiser.calls)
    assert alone == distinct
    together = Denoiser(small_network(), family)
    last(Ancestral(steps)(together, blank(rows, length), KEY))
    assert together.calls == max(distinct)
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(sum(distinct) / rows - expected) < 5 * math.sqrt(length / 4 / rows)


def test_first_hitting_takes_one_forward_a_token() -> None:
    denoiser = Denoiser(small_network(), MDLM(V))
    last(FirstHitting()(denoiser, blank(1, 9), KEY))
    assert (denoiser.calls, denoiser.rows) == (9, 9)


def test_rows_that_are_done_are_not_in_the_batch() -> None:
    """Tokens that the network reads, summed over calls: each row's own calls times its length, and no more."""
    family, seen = MDLM(V), []

    class Reading(Denoiser):
        def trunk(self, view):  # type: ignore[no-untyped-def]
            seen.append(len(view.tokens))
            return super().trunk(view)

    fixed = torch.arange(8) < torch.tensor([[0], [3], [6], [8]])
    last(FirstHitting()(Reading(small_network(), family), Canvas(torch.ones(4, 8, dtype=torch.int64), fixed), KEY))
    assert sum(seen) == 8 + 5 + 2 and len(seen) == 8


def test_duo_asks_only_for_tokens_that_may_move() -> None:
    """P(move) is at most (1 - alpha_t / alpha_s) / (1 - alpha_t): what the network says can only keep a token longer."""
    family, rows, length = Duo(V), 200, 20
    t, s = at(0.5, rows), at(0.48, rows)
    asked: list[Tensor] = []

    def rows_at(places: Tensor) -> Tensor:
        asked.append(places)
        return torch.full((len(places), V), -math.log(V), dtype=torch.float64)

    family.step(Prediction(rows_at, V), torch.zeros(rows, length, dtype=torch.int64), t, s,
                counter_rng.field(KEY, torch.arange(rows), length))  # fmt: skip
    alpha_t, alpha_s = (float(family.schedule(u)[0][0, 0]) for u in (t, s))
    most = (1 - alpha_t / alpha_s) / (1 - alpha_t)
    n = rows * length
    assert abs(len(asked[0]) / n - most) < 5 * math.sqrt(most / n) and most < 0.09


@pytest.mark.parametrize("steps", [2, 5])
def test_definitions_have_the_law_of_the_chain_too(steps: int) -> None:
    """What the benchmarks call slow is the same sampler: chi-square against the enumerated law, as for the fast ones."""
    case = next(case for case in WITH_CLOCK if case.name == "duo")
    family = clocked(case)
    tokens = chain(case.oracle, family, blank(ROWS), steps, posterior(family), 0).tokens
    assert follows(tokens, law_of_the_chain(family, case, steps))


@pytest.mark.parametrize("logits", [1 << 21, 7 * V])
@pytest.mark.parametrize("family", ["mdlm", "duo", "esolm"])
def test_gradients_are_those_of_whole_logits(family: str, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every weight's gradient; in one chunk of rows, and in chunks of seven."""
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", logits)
    made, network = build(family, {}, V), small_network().requires_grad_()
    tokens = torch.randint(0, V, (6, 13), generator=torch.Generator().manual_seed(3))
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(6))
    losses, gradients = [], []
    for slow in (False, True):
        network.zero_grad()
        fast = made.loss(network, batch, key=KEY, progress=0.0)
        loss = whole_loss(network, made, batch, KEY) if slow else fast.nats.sum() / tokens.numel()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert torch.allclose(gradients[0], gradients[1], **CLOSE)
