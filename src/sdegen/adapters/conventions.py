"""How networks of diffusers are called: what they name their time, where it lies, and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor

from sdegen.adapters.networks import unwrapped
from sdegen.errors import InvalidArgumentError
from sdegen.processes.callables import module_behind

_UNIT_TIME = ("AuraFlow", "Chroma", "Flux", "Krea2", "LongCatImage", "OvisImage", "PRX", "QwenImage")
"""Families of networks that take t in [0, 1]: their pipelines divide the time by the number of training steps."""
_TURNED = ("HiDream", "Lumina", "NucleusMoE", "ZImage")
"""Families whose pipelines turn the sign of the output, some the time too."""


@dataclass(frozen=True)
class Network:
    """A diffusers network as `net(x, time, **condition) -> [B, *S]`, whatever it calls its time and returns.

    alone: of twice the channels, the prediction without the variance.
    """

    net: Any
    name: str | None = "timestep"
    sign: float = 1.0
    alone: bool = False

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        """The network's own output, taken out of what it returns."""
        out = unwrapped(self.net(x, time, **condition) if self.name is None else self._named(x, time, condition))
        out = out[:, : x.shape[1]] if self.alone else out
        return out if self.sign == 1.0 else self.sign * out

    def __repr__(self) -> str:
        return f"Network({type(self.net).__name__})"

    def _named(self, x: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Any:
        return self.net(x, **{str(self.name): time}, **condition)


def parts_of(network: Any) -> list[Any]:
    """The modules of a network, those around others first."""
    found = module_behind(network)
    return [] if found is None else list(found.modules())


def time_name(network: Any, parts: Sequence[Any]) -> str | None:
    """What a network calls its time; None where that is told by its place."""
    takes = _takes(network)
    several = any(kind is inspect.Parameter.VAR_KEYWORD for kind in takes.values())
    for names in (takes, *(map(_takes, parts) if several else ())):
        for name in ("timestep", "timesteps"):
            if name in names:
                return name
    return None


def _takes(network: Any) -> dict[str, Any]:
    """The arguments of a network by their kinds; none of what has no signature."""
    try:
        found = inspect.signature(getattr(network, "forward", network)).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameter.kind for name, parameter in found.items()}


def has_unit_time(network: Any, parts: Sequence[Any]) -> bool:
    """Whether a flow's network takes t in [0, 1].

    Raises InvalidArgumentError where a function around one may have divided its time already, and for families whose
    pipelines turn sign or time.
    """
    families = {type(part).__name__ for part in parts}
    unit, turned = (any(name.startswith(kinds) for name in families) for kinds in (_UNIT_TIME, _TURNED))
    if turned:
        raise InvalidArgumentError(
            "pipelines of this network turn the sign of its output, some its time too: give the model a function that "
            "does what they do, and time=..., as model(lambda x, t, **more: -net(...), scheduler, time=...)"
        )
    if unit and isinstance(network, FunctionType):
        raise InvalidArgumentError(
            "this function calls a network that takes t in [0, 1]: say what the function takes, "
            "time=sd.model.level_time for that, or time=lambda level: 1000 * level.t"
        )
    return unit
