"""Other libraries' solvers as solvers here, and reverse SDEs as their problems; each is imported only when asked for.

`torchdiffeq(method)` and `torchsde(method)` make solvers for `solve` and `sample`; `for_torchdiffeq(flow)` and
`for_torchsde(reverse, shape)` make what `torchdiffeq.odeint` and `torchsde.sdeint` take.
"""

from sdegen.adapters.backwards import Backwards, for_torchsde
from sdegen.adapters.flows import for_torchdiffeq
from sdegen.adapters.ode import Even, TorchDiffEq, torchdiffeq
from sdegen.adapters.sde import TorchSDE, torchsde

__all__ = [
    "Backwards",
    "Even",
    "TorchDiffEq",
    "TorchSDE",
    "for_torchdiffeq",
    "for_torchsde",
    "torchdiffeq",
    "torchsde",
]
