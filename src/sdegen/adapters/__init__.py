"""Other libraries' solvers as solvers here, and reverse SDEs as their problems; each is imported only when asked for.

`torchdiffeq(method)` and `torchsde(method)` make solvers for `solve` and `sample`; `for_torchdiffeq(flow)` and
`for_torchsde(reverse, shape)` make what `torchdiffeq.odeint` and `torchsde.sdeint` take. `networks` and `diffusers`
make models of networks that other libraries trained; `diffusers.Scheduler` takes solvers into its pipelines.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sdegen.adapters import networks
from sdegen.adapters.bridge import Backwards
from sdegen.adapters.torchdiffeq import Even, TorchDiffEq, for_torchdiffeq, torchdiffeq
from sdegen.adapters.torchsde import TorchSDE, for_torchsde, torchsde
from sdegen.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sdegen.adapters import diffusers

__all__ = [
    "Backwards",
    "Even",
    "TorchDiffEq",
    "TorchSDE",
    "diffusers",
    "for_torchdiffeq",
    "for_torchsde",
    "networks",
    "torchdiffeq",
    "torchsde",
]


def __getattr__(name: str) -> Any:
    """`diffusers`, which derives from classes of that library and so imports it."""
    if name != "diffusers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.diffusers")
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise InvalidArgumentError("diffusers is not installed: pip install 'sdegen[diffusers]'") from None
