"""The bias of IsoFLOP parabolas (approach 2) on a study's own sizes, when the true law is L(N, D).

Along an IsoFLOP curve L(N, D) = E + A / N^alpha + B / D^beta is no parabola in ln N. Its vertex misses the optimum, by
more the wider the sizes and the further from the centre, and where that differs between budgets the exponent is wrong
even without noise (Czech et al. 2026, arXiv:2603.22339). Here the same parabolas are put through the losses of the
fitted law, whose optimum is known, and the difference is subtracted from what the data gave. Unlike the law's own
optimum this keeps approach 2 where the law is a little wrong: only the shape between the sizes is taken from it.
"""

from __future__ import annotations

import numpy as np

from redraft.scaling.laws.multiplier import Array


def law_loss(laws: Array, log_params: Array, log_tokens: Array) -> Array:
    """Losses [R, m] of laws [R, 5] of E, A, B, alpha, beta, at sizes and tokens [m] or [R, m]."""
    floor, a, b, alpha, beta = laws.T[:, :, None]
    return np.asarray(floor + a * np.exp(-alpha * log_params) + b * np.exp(-beta * log_tokens))


def optimum(log_params: Array, log_tokens: Array, laws: Array) -> Array:
    """ln N*, ln D* and ln loss* [3, R] of laws [R, 5] along the curve through sizes and tokens [m].

    ln D over ln N is a parabola through the sizes; for C = 6 N D it is a line of slope -1 and the optimum, where
    alpha A / N^alpha = -slope beta B / D^beta, is exact. A single size is taken to be on such a line.
    """
    middle = log_params.mean()
    if len(log_params) > 1:
        order = min(2, len(log_params) - 1)
        curve = np.polynomial.Polynomial.fit(log_params - middle, log_tokens, order, domain=[-1, 1])
    else:
        curve = np.polynomial.Polynomial([log_tokens[0], -1.0])
    reach = np.ptp(log_params)
    _, a, b, alpha, beta = laws.T
    best = np.zeros(len(laws))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(alpha * a) - np.log(beta * b) - alpha * middle
        for _ in range(20):
            place = np.clip(best, -reach, reach)
            slope = np.minimum(curve.deriv()(place), -0.05)
            best = (ratio - np.log(-slope) + beta * (curve(place) - slope * place)) / (alpha - beta * slope)
    place = np.clip(best, -reach, reach)
    log_d = curve(place) + np.minimum(curve.deriv()(place), -0.05) * (best - place)
    log_n = best + middle
    loss = law_loss(laws, log_n[:, None], log_d[:, None])[:, 0]
    return np.stack([log_n, log_d, np.log(loss)])


def parabola_bias(log_params: Array, log_tokens: Array, solver: Array, laws: Array) -> Array:
    """Vertex less optimum, [3, R] of ln N*, ln D* and ln loss*, along the curve through sizes and tokens [m], for laws [R, 5]
    of E, A, B, alpha, beta.

    `solver` [3, m] takes losses to a parabola (`isoflop`). NaN where the parabola opens downwards, or the law
    has no optimum (one of its terms is lost) or one further from the vertex than the sizes span.
    """
    losses = law_loss(laws, log_params, log_tokens)
    a, b, c = solver @ losses.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.where(c > 0, log_params.mean() - b / (2 * c), np.nan)
        log_loss = np.log(np.where(c > 0, a - b * b / (4 * c), np.nan))
    at_vertex = np.stack([vertex, np.interp(vertex, log_params, log_tokens), log_loss])
    bias = at_vertex - optimum(log_params, log_tokens, laws)
    known = np.isfinite(bias).all(0) & (np.abs(bias[0]) <= np.ptp(log_params))
    return np.where(known, bias, np.nan)
