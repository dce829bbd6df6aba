"""Controllers: which step next, and was the last one good?"""

from sdegen.control.adaptive import Adaptive, Pace
from sdegen.control.fixed import Controller, Fixed, OnGrid, Restart, Restarted
from sdegen.control.pi import PI

__all__ = ["PI", "Adaptive", "Controller", "Fixed", "OnGrid", "Pace", "Restart", "Restarted"]
