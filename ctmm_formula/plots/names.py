"""Names of points in a picture: rings, and each name where nobody takes it for another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from scipy.spatial.distance import cdist

from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

RING = 3.0
"""Points: radius of a ring, and what is free around all things."""
_BESIDE = 8.0  # points; a name this near its ring needs no line
_RADII = 5.0 * 1.4 ** np.arange(12)
_ANGLES = np.deg2rad([0, 180, 45, 135, 315, 225, 90, 270, 20, 160, 340, 200, 65, 115, 295, 245])
_REACH = np.repeat(_RADII, len(_ANGLES))
_LOOKS = 2  # the second finds what the first took from names after it
_COMPARED = 40  # candidates whose lines are looked at
_CROSSING = 2.0  # points farther away are worth a line that touches one thing less,
_RINGS = 15  # and so much more if that is a ring
_STEPS = 30


def name_points(ax: Axes, place: np.ndarray, names: Sequence[str]) -> None:
    """Rings around the points of `place` (k, 2), in data, and their names."""
    if not len(names):
        return
    ax.plot(place[:, 0], place[:, 1], "o", ms=2 * RING - 1, mfc="none", mec=style.MARK, mew=1)
    line: Any = {
        "arrowstyle": "-", "color": style.LINE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": RING
    }  # fmt: skip
    halo = [withStroke(linewidth=1.5, foreground=ax.get_facecolor())]
    texts = [
        ax.annotate(
            name, spot, xytext=(0.0, 0.0), textcoords="offset points", fontsize=style.SMALL - 1,
            ha="left", va="bottom", arrowprops=line, in_layout=False, path_effects=halo,
            parse_math=False,
        )
        for name, spot in zip(names, place, strict=True)
    ]  # fmt: skip
    ax.add_artist(_Placement(place, texts))


class _Placement(Artist):
    """Places names anew whenever they are drawn: only then the size of the axes is known."""

    zorder = 2.9  # names have 3

    def __init__(self, place: np.ndarray, texts: Sequence[Any]) -> None:
        super().__init__()
        self.set_in_layout(False)
        self.place, self.texts = place, texts

    def draw(self, renderer: RendererBase) -> None:
        pixels = renderer.points_to_pixels(1.0)
        ax: Any = self.axes
        box = ax.get_window_extent(renderer)
        points = (ax.transData.transform(self.place) - [box.x0, box.y0]) / pixels
        area = np.array([box.width, box.height]) / pixels
        # matplotlib draws no others: they are to take no room
        seen = np.flatnonzero(((points >= 0.0) & (points <= area)).all(axis=1))
        texts = [self.texts[k] for k in seen.tolist()]
        extents = [Text.get_window_extent(text, renderer) for text in texts]
        sizes = np.array([[one.width, one.height] for one in extents]).reshape(-1, 2) / pixels
        corners, lines = places(points[seen], sizes, area)
        for text, corner, point, line in zip(texts, corners, points[seen], lines, strict=True):
            text.xyann = tuple(corner - point)
            text.arrow_patch.set_visible(bool(line))


def places(
    points: np.ndarray, sizes: np.ndarray, area: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where names stand, as near to their points as can be without being taken for another's.

    They touch neither each other nor a ring.  A name beside its ring is nearer to it than to any
    other; one farther away has a line.  Where there is no such place these rules are broken as
    little as can be.  A line may touch what is not its own where a way round would be long.

    Parameters
    ----------
    points, sizes : array, shape (k, 2)
        Points, and widths and heights of their names.
    area : array, shape (2,)
        Width and height to stay in.

    Returns
    -------
    corners : array, shape (k, 2)
        Lower left ends of the names.
    lines : array of bool, shape (k,)
        Which names have a line.

    Examples
    --------
    >>> corners, lines = places(np.array([[50.0, 50.0]]), np.array([[20.0, 8.0]]), np.full(2, 99.0))
    >>> corners.tolist(), lines.tolist()
    ([[55.0, 46.0]], [False])
    """
    corners, lines = np.full_like(points, np.inf), np.zeros(len(points), dtype=bool)
    ways = np.full((len(points), _STEPS, 2), np.inf)  # of lines; what is not there yet is far
    # those at the edge have the fewest places
    order = np.argsort(np.minimum(points, area - points).min(axis=1), kind="stable")
    for k in [*order] * _LOOKS:
        others = np.arange(len(points)) != k
        corners[k], lines[k] = _place(
            points[k], sizes[k], area, points[others], corners[others], sizes[others],
            ways[others].reshape(-1, 2),
        )  # fmt: skip
        ways[k] = _steps(corners[k] + sizes[k] / 2, points[k]) if lines[k] else np.inf
    return corners, lines


def _place(
    point: np.ndarray,
    size: np.ndarray,
    area: np.ndarray,
    rings: np.ndarray,
    corners: np.ndarray,
    sizes: np.ndarray,
    ways: np.ndarray,
) -> tuple[np.ndarray, bool]:
    """Lower left end of one name and whether it has a line, given all others."""
    low = _candidates(point, size, area)
    apart, rest = _gaps(low, size, point[None])[:, 0], _gaps(low, size, rings)
    line = apart > _BESIDE
    faults = (rest < RING).sum(axis=1) + _shared(low, size, corners, sizes)
    faults += (apart < RING) + (~line & (rest.min(axis=1, initial=np.inf) < apart + RING))
    best = np.argsort(faults, kind="stable")[:_COMPARED]
    steps = _steps(low[best] + size / 2, point)
    flat = steps.reshape(-1, 2)
    near = (cdist(flat, rings), cdist(flat, ways), _gaps(corners, sizes, flat).T)
    on_rings, on_lines, on_names = (
        (gaps < RING).any(axis=1).reshape(steps.shape[:2]) for gaps in near
    )
    touched = (on_rings | on_lines | on_names).sum(axis=1) + _RINGS * on_rings.sum(axis=1)
    touched = touched * line[best] + (_gaps(low[best], size, ways) < RING).sum(axis=1)
    at = best[np.lexsort([_REACH[best] + _CROSSING * touched, faults[best]])[0]]
    return low[at], bool(line[at])


def _candidates(point: np.ndarray, size: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Lower left ends (m, 2) of places around a point, the best first, all of them in the area."""
    way = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    side = np.clip(1.5 * way, -1.0, 1.0)  # 1 if the name begins where it is anchored, -1 if it ends
    low = point + _RADII[:, None, None] * way - size * (1.0 - side) / 2.0
    return np.clip(low.reshape(-1, 2), 0.0, np.maximum(area - size, 0.0))


def _gaps(low: np.ndarray, size: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distances (m, k) of points from names; 0 within."""
    out = np.maximum(low[:, None] - points, points - (low + size)[:, None])
    out = np.maximum(out, 0.0)
    return np.hypot(out[..., 0], out[..., 1])


def _shared(low: np.ndarray, size: np.ndarray, lows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How much of each name (m,) other names take or come too near to, in squares of RING."""
    ends = np.minimum((low + size)[:, None], lows + sizes + RING)
    both = ends - np.maximum(low[:, None], lows - RING)
    return np.ceil(np.prod(np.maximum(both, 0.0), axis=-1) / RING**2).sum(axis=1)


def _steps(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points (..., _STEPS, 2) on the way from each start to the end."""
    along = np.linspace(0.0, 1.0, _STEPS)[:, None]
    return start[..., None, :] + along * (end - start)[..., None, :]
