"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1, compiled.

A form is known by its cumulant function K (see :class:`~ctmm_formula.inference.cumulants.Law`);
plain weights lambda are the simplest case.  P(form > value) is

    (2 pi i)^-1 int exp(K(s) - s value) / s ds

along any path that crosses the real axis between 0 and the first pole of K.  The path goes through
the saddlepoint K'(s) = value and is bent, as a hyperbola, to where K turns least, so that the
integrand is almost a normal density: eight points of a trapezoid sum give six digits and more as
a rule (two and a half where eigenvalues are few), sixteen twice as many.  Far out, where one pole
makes the law, it is that of a chi-square of few degrees of freedom: the path is bent more and there
are sixteen points from the start.  How far sums at twice and three times the step are from it tells
its error.
The pole at 0 leaves a known trace in such a sum, which is taken out.  Sizes are kept as logarithms:
nothing is lost however small the tail.  (Imhof 1961 and Davies 1980 integrate along the imaginary
axis, where only the absolute error is small.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.kernels import empty
from ..engine.lanes import POINTS
from ..engine.options import called_exact, kept_exact
from .cumulants import Law, log_determinants, moments, until

# trapezoid in x, along the path in widths: of a normal density eight points leave 1e-7, and sums
# at twice and three times the step are off by errors of which one is that power of the other
_STEP, _NORMAL = 0.68, 4.0 / 9.0
_SKEW, _FINE = 1.5, 0.5  # skewness at the saddlepoint from where twice the points are taken at once
_POLE = 2.8  # skewness from where one pole makes the law: that of chi-square of one is 2.83
_MOST = 4, 12  # POINTS from a guess and from a saddlepoint, before steps are halved
_LAST_STEP = 0.2, 0.01  # from a guess and from a saddlepoint no step is halved that is less
AGREE = 1e-5  # of one sum with that of twice the step, whose error is about the root of its own
_ASIDE, _BESIDE = 1e-6, 0.25  # steps into the complex plane for derivatives of K, in widths
_REACH = 100.0  # widths from a point to where the first of those beside it lies
_WIDER = 10.0  # next step for derivatives, where one was lost in rounding
_KNOWN = 0.01  # of the law's variance, below which a variance is not known
_CLOSE, _LIKE = 0.1, 0.2  # to the saddlepoint, in widths and of the target
_ASTRAY = 1.0  # slope of a guess from the target, in widths, from where it is none
_ROUNDING = 1e-14  # of the integrand: where far more cancels than is left, the path is none
_ROUGH = 2e-2  # root of the relative error where four digits will do
_HOPELESS = 0.02  # two sums apart, where a better saddlepoint is worth its while
_FAR = 1e9  # the form is never beyond a value whose saddlepoint is
_MIDDLE = POINTS // 2 - 1  # of points around one
_APART = 0.6  # of the path from the pole of the integrand at 0, in widths
_LEAST_BEND = 0.2  # to where exp(-s value) vanishes
_MOST_BEND = 1.0, 2.0  # and not beyond, below that skewness and above it
_SPREAD = 0.25  # how fast the path widens, of the fourth by the second cumulant
_WIDEST = 0.38, 0.33


class _Point(NamedTuple):
    """A real s, and K and its first three derivatives there, the last two to some per cent."""

    s: float
    K: float
    slope: float
    curve: float
    third: float


@called_exact
def _around(law, places, width, variance, slopes):
    """A point in the middle of real `places`, where `width` is about K''^-1/2, and slopes at all.

    The next one is the same again.  Slopes are NaN beyond a pole.
    """
    near, far = _ASIDE * width, _BESIDE * width
    s = empty((2, POINTS))
    for i in range(POINTS):
        s[0, i], s[1, i] = places[i], near
    s[1, _MIDDLE + 1] = far
    size, phase, slow, passed = until(law, s, variance, POINTS)
    for i in range(POINTS):
        for b in range(len(slow)):
            phase[i] += slow[b, i]
        phase[i] -= 2.0 * math.pi * round(phase[i] / (2.0 * math.pi))
        slopes[i] = math.nan
        if abs(phase[i]) < 1.0 and passed[i] == 0:
            slopes[i] = -0.5 * phase[i] / near
    at, slope = places[_MIDDLE], slopes[_MIDDLE]
    if math.isnan(slope):
        return _Point(at, math.nan, math.nan, math.nan, math.nan)
    K = -0.5 * size[_MIDDLE]
    turn = 0.5 * phase[_MIDDLE + 1] + far * slope
    turn -= math.pi * round(turn / math.pi)
    curve = (2.0 * K + size[_MIDDLE + 1]) / (far * far)
    return _Point(at, K, slope, curve, 6.0 * turn / (far * far * far))


@called_exact
def _donors_alone(law, side, target, low, high, unit):
    """The s of (low, high) where the donors' part of K' - mean is the target.

    Infinite where there is none below `_FAR` times `unit`.
    """
    end = high
    for value in law.values:
        if 2.0 * side * value * end > 1.0:
            end = 0.5 / (side * value)
    if not end < math.inf:
        end, total = unit, -1.0
        while total < target:
            if end > _FAR * unit:
                return math.inf
            end *= 4.0
            total = 0.0
            for value in law.values:
                total += side * value / (1.0 - 2.0 * side * value * end) - side * value
    s = 0.5 * (low + end)
    for _ in range(60):
        total, slope = -target, 0.0
        for value in law.values:
            z = 1.0 / (1.0 - 2.0 * side * value * s)
            total += side * value * (z - 1.0)
            slope += 2.0 * value * value * z * z
        if total < 0.0:
            low = s
        else:
            end = s
        before = s
        s -= total / slope
        if not low < s < end:
            s = 0.5 * (low + end)
        if abs(s - before) < 1e-3 * s:
            break
    return s


@called_exact
def _aim(value, mean, variance):
    """On which side of 0 the saddlepoint lies, and |K' - mean| there: not too near that pole."""
    target, least = abs(value - mean), _APART * math.sqrt(variance)
    if target < least:
        return math.copysign(1.0, value), least
    return math.copysign(1.0, value - mean), target


@called_exact
def _ratio(law, variance):
    """The variance in that of the donors' part."""
    donors = 0.0
    for weight in law.values:
        donors += 2.0 * weight * weight
    return variance / donors


@called_exact
def _guess(law, side, target, mean, variance):
    """Where K' - mean has the target, were it a multiple of the donors' part of it.

    K and its true derivatives are not known there.  Where donors by themselves never have the
    target the whole may: the point then is none to start from, and its slope NaN.
    """
    ratio, unit = _ratio(law, variance), 1.0 / math.sqrt(variance)
    s, slope = _donors_alone(law, side, target / ratio, 0.0, math.inf, unit), mean + side * target
    if not s < _FAR * unit:
        s, slope = unit, math.nan
    curve = third = 0.0
    for weight in law.values:
        z = weight / (1.0 - 2.0 * side * weight * s)
        curve += 2.0 * ratio * z * z
        third += 8.0 * ratio * z * z * z
    return _Point(side * s, math.nan, slope, curve, third)


@called_exact
def _crossing(law, guess, side, target, mean, variance):
    """The saddlepoint, or a point not far from the pole at 0; NaN where K' never has the target.

    K' - mean is taken for a s / (1 - b s), which is what it looks like on the way to a pole,
    through the last two points below the target or zero, within the bounds that points beside them
    set.
    """
    low, high, before = 0.0, math.inf, 0.0
    x_low = x_before = 0.0
    width = unit = 1.0 / math.sqrt(variance)
    places, slopes = empty(POINTS), empty(POINTS)
    s = side * guess.s
    if not 0.0 < s < _FAR * unit:
        s = unit
    elif guess.curve * unit * unit > 0.0:
        width = 1.0 / math.sqrt(guess.curve)
    for _ in range(100):
        if not s < _FAR * unit:
            break
        step = min(width, s)
        down, up = s - low, high - s if math.isfinite(high) else min(4.0 * s, _REACH * width)
        places[_MIDDLE] = places[_MIDDLE + 1] = side * s
        share = 0.5
        for i in range(_MIDDLE):  # ever nearer to it on both sides
            places[i], places[POINTS - 1 - i] = side * (s - share * down), side * (s + share * up)
            share *= 0.125
        at = _around(law, places, step, variance, slopes)
        for i in range(POINTS):
            x = side * (slopes[i] - mean)
            if i != _MIDDLE + 1 and not x_low < x < target:  # above it, or beyond a pole
                high = side * places[i]
                break
            if i != _MIDDLE + 1:
                before, x_before, low, x_low = low, x_low, side * places[i], x
        for _ in range(8):  # until the step is right for the derivatives
            gap = abs(side * (at.slope - mean) - target)
            # no curve is what rounding leaves of it where the step is too small to see it
            width = 1.0 / math.sqrt(at.curve) if at.curve > 0.0 else _WIDER * step
            if not (gap * width < _CLOSE and gap < _LIKE * target):
                break
            if 0.5 * step < min(width, s) < 2.0 * step:
                return at
            step = min(width, s)
            at = _around(law, places, step, variance, slopes)
        if low == 0.0:
            s = 0.5 * high
            continue
        if before == 0.0:
            a, b = variance, (1.0 - variance * low / x_low) / low
        else:
            b = (x_low / low - x_before / before) / (x_low - x_before)
            a = x_low / low - b * x_low
        s = target / (a + b * target)
        if not low < s < high:
            s = 0.5 * (low + high) if math.isfinite(high) else 2.0 * low
        elif a > 0.0:
            width = abs(1.0 - b * s) / math.sqrt(a)
    return _Point(math.nan, math.nan, math.nan, math.nan, math.nan)


class _Path(NamedTuple):
    """s(x) = cross + width / fast (i sinh(fast x) + bend (cosh(fast x) - 1)).

    `start` is K(cross) - cross value, `turn` the derivative of its phase at 0; of so many nodes of
    this step the first sum is made.
    """

    cross: float
    width: float
    fast: float
    bend: float
    start: float
    turn: float
    step: float
    nodes: int


@called_exact
def _path(law, value, at):
    """The path through a crossing: how it widens and bends follows from the cumulants there."""
    width = 1.0 / math.sqrt(at.curve)
    second = fourth = 0.0
    for weight in law.values:
        t = 2.0 * weight * width / (1.0 - 2.0 * at.s * weight)
        second += t * t
        fourth += t * t * t * t
        if 2.0 * at.s * weight >= 1.0:
            fourth = math.inf  # beyond the pole of a donor by itself, which says nothing then
            break
    skew = at.third * width * width * width
    pole = 1 if abs(skew) > _POLE else 0
    fast = max(fourth / second, 0.25 * skew * skew)
    fast = max(min(math.sqrt(_SPREAD * fast), _WIDEST[pole]), 1e-3)
    bend = skew / (3.0 * fast) * math.copysign(1.0, value)
    bend = math.copysign(min(max(bend, _LEAST_BEND), _MOST_BEND[pole]), value)
    step, nodes = (_FINE, 2 * POINTS) if abs(skew) > _SKEW else (_STEP, POINTS)
    turn = (at.slope - value) * width
    return _Path(at.s, width, fast, bend, at.K - at.s * value, turn, step, nodes)


@called_exact
def _places(path, x):
    """s (2, n) at x (n,) of the path."""
    s = empty((2, len(x)))
    reach = path.width / path.fast
    for i in range(len(x)):
        s[0, i] = path.cross + reach * path.bend * (math.cosh(path.fast * x[i]) - 1.0)
        s[1, i] = reach * math.sinh(path.fast * x[i])
    return s


@called_exact
def _factors(law, s):
    """Rows of all that :func:`.log_determinants` says at s (2, n): (2 + blocks + 1, n)."""
    size, phase, slow = log_determinants(law, s, np.zeros(0, dtype=np.int64))
    return _rows(size, phase, slow)


@called_exact
def _rows(size, phase, slow):
    rows = empty((2 + len(slow), len(size)))
    for i in range(len(size)):
        rows[0, i], rows[1, i] = size[i], phase[i]
        for b in range(len(slow)):
            rows[2 + b, i] = slow[b, i]
    return rows


@called_exact
def _integrand(value, path, x, rows):
    """The integrand at x (n,) of the path from 0 on, less the size exp(start); `rows` of it all.

    What is known of a phase but for multiples of 2 pi is continued from node to node: that of the
    whole, which hardly turns where the integrand is large, and slow parts of it each by itself.
    Then the sum of the integrand's sizes where the two differ, so that its sign is in doubt, and
    of rounding elsewhere; and what of its absolute values lies beyond the last, were they to fall
    as they do up to it.
    """
    n, s = len(x), _places(path, x)
    phase = rows[1].copy()
    for b in range(2, len(rows)):
        rate, now = 0.0, 0.0
        for i in range(1, n):
            step, before, now = x[i] - x[i - 1], now, rows[b, i]
            if i > 1:
                now -= 2.0 * math.pi * round((now - before - rate * step) / (2.0 * math.pi))
                rate = (now - before) / step
            phase[i] += now
    out = empty(n)
    turn, rate, start, doubt = 0.0, path.turn / path.width, 0.0, 0.0
    first = second = last = 0.0
    for i in range(n):
        halves = 0.0
        if i > 0:
            step, before = s[1, i] - s[1, i - 1], turn
            turn = -0.5 * phase[i] - s[1, i] * value
            halves = round((turn - before - rate * step) / math.pi)
            turn -= math.pi * halves
            rate = (turn - before) / step
            start = halves if i == 1 else start
        sinh, cosh = math.sinh(path.fast * x[i]), math.cosh(path.fast * x[i])
        slope, slope_i = path.width * path.bend * sinh, path.width * cosh
        at = -0.5 * rows[0, i] - s[0, i] * value - path.start
        cos, sin = math.cos(turn), math.sin(turn)
        up = cos * slope - sin * slope_i
        up_i = cos * slope_i + sin * slope
        square = s[0, i] * s[0, i] + s[1, i] * s[1, i]
        large = math.exp(at) / (math.pi * square)
        out[i] = large * (up_i * s[0, i] - up * s[1, i])
        first, second = second, last
        last = large * math.sqrt(square * (slope * slope + slope_i * slope_i))
        other = i > 0 and (halves - start) % 2.0 != 0.0
        doubt += abs(out[i]) if other else _ROUNDING * abs(out[i])
    left = 0.0 if last == 0.0 else math.inf
    if 0.0 < last < second:
        falls = last / second
        falls *= min(falls * first / second, 1.0)  # as those of a normal density do, ever faster
        left = last * falls / (1.0 - falls)
    return out, doubt, left


@called_exact
def _from(law, value, at, variance):
    """The path through a point of which K may be unknown, and the first of :func:`_factors` of it.

    There are none where a pole lies between 0 and the point, or its slope is another.
    """
    path, none = _path(law, value, at), empty((0, 0))
    x = _nodes(0.0, path.step, path.nodes)
    if math.isnan(at.slope):
        return path, none
    s = _places(path, x)
    near = _ASIDE * path.width
    s[1, 0] = near  # where the phase tells the slope
    size, phase, slow, passed = until(law, s, variance, 1)
    around = phase[0]
    for b in range(len(slow)):
        around += slow[b, 0]
    around -= 2.0 * math.pi * round(around / (2.0 * math.pi))
    slope = -0.5 * around / near
    if not (passed[0] == 0 and abs(slope - at.slope) * path.width < _ASTRAY):
        return path, none
    path = _Path(
        path.cross, path.width, path.fast, path.bend, -0.5 * size[0] - at.s * value,
        (slope - value) * path.width, path.step, path.nodes,
    )  # fmt: skip
    return path, _rows(size, phase, slow)


@called_exact
def _trace(path, step):
    """What the pole at 0 adds to a sum of this step, less the size exp(start).

    The pole lies at i times some distance in x; a sum of step h has too much of its residue, by
    1 / (exp(2 pi distance / h) - 1).
    """
    z = (path.cross / path.width * path.fast - path.bend) / math.hypot(1.0, path.bend)
    if abs(z) >= 1.0:
        return 0.0  # too far to be seen
    distance = (math.asin(z) + math.atan(path.bend)) / path.fast
    far = 2.0 * math.pi * abs(distance) / step
    if -path.start > 0.5 * far:
        return 0.0  # other errors of the sum are larger, and of the other sign
    return math.copysign(math.exp(-far - path.start) / -math.expm1(-far), path.cross)


@called_exact
def _nodes(start, step, n):
    x = empty(n)
    for i in range(n):
        x[i] = start + i * step
    return x


@called_exact
def _sum(f, stride):
    total = -0.5 * f[0]
    for i in range(0, len(f), stride):
        total += f[i]
    return total


def tail(
    value: float,
    law: Law,
    more: float = 0.0,
    least: float = 0.0,
    agree: float = AGREE,
    above: float = 0.0,
) -> tuple[float, float, float]:
    """log P(form > value) for a :class:`Law`, and the mean and variance of the form.

    `more` is what the variance of the form has beyond the law's: the law then is that of its shape,
    and a distance from the mean counts in standard deviations.  There is no tail where the law has
    no more variance than `least`, or the form next to none of the law's, or where rounding leaves
    less than four digits.  `agree` is about the root of the relative error; a logarithm greater
    than `above` has four digits as a rule, and two and a half as far as seen, at half the cost.
    """
    return _tail(value, law, more, least, agree, above)


class _Sums(NamedTuple):
    """The sum of the integrand at a step, and how far those of twice and three times that are.

    All without what the pole at 0 adds.  `doubt` is what nodes of unknown sign may add, `left` what
    those beyond the last would.
    """

    total: float
    twice: float
    thrice: float
    doubt: float
    left: float


@called_exact
def _sums_of(value, path, rows, step):
    """Sums by factors at nodes of a step."""
    f, doubt, left = _integrand(value, path, _nodes(0.0, step, rows.shape[1]), rows)
    total = step * _sum(f, 1) - _trace(path, step)
    twice = 2.0 * step * _sum(f, 2) - _trace(path, 2.0 * step)
    thrice = 3.0 * step * _sum(f, 3) - _trace(path, 3.0 * step)
    return _Sums(total, abs(total - twice), abs(total - thrice), 2.0 * step * doubt, step * left)


@called_exact
def _logarithm(path, total):
    """log P by the whole sum."""
    if path.cross > 0.0:
        return min(path.start + math.log(max(total, 0.0)), 0.0)
    return math.log1p(max(math.exp(path.start) * min(total, 0.0), -1.0))


@called_exact
def _finer(law, path, step, rows):
    """Factors at nodes of half the step: those there are, and others between them."""
    n = rows.shape[1]
    between = _factors(law, _places(path, _nodes(0.5 * step, step, n)))
    out = empty((len(rows), 2 * n))
    for a in range(len(out)):
        for i in range(n):
            out[a, 2 * i], out[a, 2 * i + 1] = rows[a, i], between[a, i]
    return out


@called_exact
def _further(law, path, step, rows):
    """Factors at the nodes there are, and at some beyond them."""
    n = rows.shape[1]
    beyond = _factors(law, _places(path, _nodes(n * step, step, POINTS)))
    out = empty((len(rows), n + POINTS))
    for a in range(len(out)):
        for i in range(n + POINTS):
            out[a, i] = rows[a, i] if i < n else beyond[a, i - n]
    return out


@called_exact
def log_tail(value, law, more, least, agree, above):
    """:func:`tail`, for compiled code, and whether the logarithm has all digits."""
    mean, own = moments(law)
    variance = own + more
    if not (own > least and variance > _KNOWN * own):
        return math.nan, mean, variance, True
    value = mean + (value - mean) * math.sqrt(own / variance)
    side, target = _aim(value, mean, own)
    accident = 2.0 * (0.5 * agree) ** _NORMAL
    # most guesses are good enough for a path, and what comes of it tells of the others
    at = _guess(law, side, target, mean, own)
    for again in range(2):
        if again == 1:
            at = _crossing(law, at, side, target, mean, own)
            if math.isnan(at.s):
                return (-math.inf if value > mean else 0.0), mean, variance, True
        path, rows = _from(law, value, at, own)
        if len(rows) == 0:
            continue
        step = path.step
        # far out the width of a guess is that of its pole: too few nodes then say that it is none
        most = _MOST[again] * POINTS if again == 1 or step == _STEP else path.nodes
        sums = _sums_of(value, path, rows, step)
        while True:
            nothing = _ROUGH if _logarithm(path, sums.total) > above else agree
            ends = sums.left < nothing**2 * abs(sums.total)
            if ends or rows.shape[1] >= most:
                break
            rows = _further(law, path, step, rows)
            sums = _sums_of(value, path, rows, step)
        if again == 0 and not ends:
            continue
        # the error falls with the square from one step to the next
        while True:
            size = abs(sums.total)
            log = _logarithm(path, sums.total)
            if (
                sums.twice < agree * size and sums.doubt < agree**2 * size
                and (sums.thrice < accident * size or step < 0.5 * path.step)
            ):  # fmt: skip
                return log, mean, variance, sums.left < agree**2 * size
            if log > above and sums.twice < _ROUGH * size and sums.doubt < _ROUGH**2 * size:
                return log, mean, variance, False
            if not step > _LAST_STEP[again] or (
                again == 0 and step < path.step and not sums.twice < _HOPELESS * size
            ):
                break
            rows = _finer(law, path, step, rows)
            step *= 0.5
            sums = _sums_of(value, path, rows, step)
        # as far as rounding lets sums agree, in units of P
        if again == 1 and (sums.twice + sums.doubt) * math.exp(path.start - log) < _ROUGH**2:
            return log, mean, variance, True
    return math.nan, mean, variance, True


@kept_exact
def _tail(value, law, more, least, agree, above):
    log, mean, variance, _ = log_tail(value, law, more, least, agree, above)
    return log, mean, variance
