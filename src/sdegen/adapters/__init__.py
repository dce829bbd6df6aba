"""Other libraries' solvers as solvers here, and reverse SDEs as their problems; each is imported only when asked for.

`torchdiffeq(method)` and `torchsde(method)` make solvers for `solve` and `sample`; `for_torchdiffeq(flow)` and
`for_torchsde(reverse, shape)` make what `torchdiffeq.odeint` and `torchsde.sdeint` take.
"""

from sdegen.adapters.bridge import Backwards
from sdegen.adapters.torchdiffeq import Even, TorchDiffEq, for_torchdiffeq, torchdiffeq
from sdegen.adapters.torchsde import TorchSDE, for_torchsde, torchsde

__all__ = ["Backwards", "Even", "TorchDiffEq", "TorchSDE", "for_torchdiffeq", "for_torchsde", "torchdiffeq", "torchsde"]
