"""Pictures: images, runs, flows, laws and scores, grids and plans, cost against quality, orders.

Each function draws on the axes it is given, or on those of a new figure, and returns them: `ax.figure.savefig(...)`.
Figures are made without pyplot, so nothing is global: they work without a display and from any thread. Letters follow
the width of the axes, so that a `figure(3.6, 3.4)` can be read on a phone.
"""

from sdegen.plots.film import animate
from sdegen.plots.images import image_grid
from sdegen.plots.levels import plan, time_grids
from sdegen.plots.orders import convergence
from sdegen.plots.paths import trajectories
from sdegen.plots.plane import density, score_field
from sdegen.plots.spread import marginals
from sdegen.plots.style import COLOURS, INK, MARKERS, MUTED, figure
from sdegen.plots.tradeoff import quality

__all__ = [
    "COLOURS",
    "INK",
    "MARKERS",
    "MUTED",
    "animate",
    "convergence",
    "density",
    "figure",
    "image_grid",
    "marginals",
    "plan",
    "quality",
    "score_field",
    "time_grids",
    "trajectories",
]
