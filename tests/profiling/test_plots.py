"""The report's pictures: what their axes show."""

from types import SimpleNamespace

import pytest
from matplotlib.text import Text

from spikeport.core.figures import literal
from spikeport.profiling import plots
from spikeport.profiling.breakeven import MOST_STEPS, BreakEven


@pytest.mark.parametrize(("steps", "top"), [(1, 0.8), (4, 0.2), (8, 0.1), (40, 0.1)])
def test_the_break_even_axis_fits_the_networks_own_steps(monkeypatch, steps, top):
    drawn = []
    monkeypatch.setattr(plots, "_picture", lambda figure, *texts: drawn.append(figure))
    even = [BreakEven("horowitz", {t: 0.8 / t for t in range(1, max(MOST_STEPS, steps) + 1)}, 16)]
    plots.break_even_plot(even, SimpleNamespace(time_steps=steps, rate=0.01))
    assert drawn[0].axes[0].get_ylim() == pytest.approx((0, top))


def test_a_name_with_dollars_is_no_formula():
    text = Text(text=literal(r"c$\frac{$ $x_2$"))
    assert text._preprocess_math(text.get_text()) == (r"c$\frac{$ $x_2$", False)
