"""Pictures as they were when somebody looked at them, and how far a new one is from that.

Fonts and their hinting differ between machines, and the layout with them: so what is compared is
the picture without any text in fixed places, as pixels, and the text as text.  Run
`CTMM_BASELINE=1 pytest tests/test_plots_*.py` to write what is drawn now.
"""

import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread, imsave
from matplotlib.legend import Legend
from matplotlib.text import Text

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 0.0025
"""Root mean square of the differences of colours from 0 to 1, over squares of 4 x 4 pixels: another
font gives 0, the caps of error bars that are lost 0.003, lost points 0.01, a lost bar 0.04."""
_SQUARE, _DPI = 4, 80


def words(figure):
    """Every text that is there, in order; without numbers, which stand on the axes."""
    found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return [text for text in found if any(letter.isalpha() for letter in text)]


def pixels(figure):
    """Colours (height, width, 3) from 0 to 1 of the figure without text in fixed places."""
    figure.set_layout_engine("none")
    figure.set_dpi(_DPI)
    for artist in figure.findobj(Text) + figure.findobj(Legend):
        artist.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255.0


def distance(one, other):
    """Root mean square distance of two pictures of one size."""
    assert one.shape == other.shape, f"the size is {one.shape}, it was {other.shape}"
    height, width = (side // _SQUARE * _SQUARE for side in one.shape[:2])
    difference = (one - other)[:height, :width]
    squares = difference.reshape(height // _SQUARE, _SQUARE, width // _SQUARE, _SQUARE, 3)
    return float(np.sqrt((squares.mean(axis=(1, 3)) ** 2).mean()))


def check(figure, name):
    """Compare a figure with the picture of that name; the figure loses its text."""
    path = BASELINE / f"{name}.png"
    text, now = words(figure), pixels(figure)
    if os.environ.get("CTMM_BASELINE"):
        path.parent.mkdir(exist_ok=True)
        imsave(path, now)
        path.with_suffix(".txt").write_text("\n---\n".join(text), encoding="utf-8")
    assert text == path.with_suffix(".txt").read_text(encoding="utf-8").split("\n---\n")
    before = imread(path)[..., :3]
    assert distance(now, before) < TOLERANCE, f"{name} does not look like {path}"
