"""Networks of other libraries as score models: each function says what one family predicts, and how it is called.

None imports that library. Further keywords go to `ScoreModel`: conditions, which are the network's own, and options.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import add, sub
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, ScoreTypeError, check_known
from sdegen.level import Level
from sdegen.processes.process import Process
from sdegen.processes.schedules import EDM, VE, VP, DiscreteVP, Flow, SubVP
from sdegen.scores.conditions import shared
from sdegen.scores.model import ScoreModel, index_time, sigma_time
from sdegen.tensors import check_type, how_to_take

Net = Callable[..., Any]
Sigma = float | None


def edm(net: Net, predicts: Any = None, *, sigma_min: Sigma = None, sigma_max: Sigma = None, **more: Any) -> ScoreModel:
    """An EDM network on `EDM`: the denoiser `D(x, sigma)`, or the raw `F(c_in x, log(sigma)/4)` inside of it.

    Args:
        predicts: 'data' for D, 'edm' for F; None where the network tells, as EDM's own do.
        sigma_min, sigma_max: the span; None for the network's own, or 0.002 and 80 where that is 0 or infinite.

    Raises InvalidArgumentError where the network does not tell. Source: Karras et al. (2022), table 1.
    """
    second = _arguments(net)[1]  # a raw network may call it sigma too
    denoiser = hasattr(net, "round_sigma") or (second == "sigma" and hasattr(net, "sigma_data"))
    kind: Any = predicts or ("edm" if second == "noise_labels" else "data" if denoiser else None)
    if kind not in ("data", "edm"):
        raise InvalidArgumentError(
            "write predicts='data' for a denoiser D(x, sigma), predicts='edm' for the raw F(c_in x, log(sigma)/4): "
            f"{type(net).__name__} does not tell which it is, and predicts is {predicts!r}"
        )
    inner = net
    while not hasattr(inner, "sigma_min") and hasattr(inner, "inner_model"):
        inner = inner.inner_model
    own = [float(getattr(inner, name, 0.0)) for name in ("sigma_min", "sigma_max")]
    low, high = (mine if 0.0 < mine < math.inf else usual for mine, usual in zip(own, (0.002, 80.0)))
    process = EDM(low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)
    more = {"sigma_data": float(getattr(net, "sigma_data", 0.5)), "cast": kind == "data", **more}
    return ScoreModel(process, net, kind, **more)


def k_diffusion(denoiser: Net, **more: Any) -> ScoreModel:
    """A denoiser of k-diffusion on `EDM`, `denoiser(x, sigma, **condition) -> data`, whatever it wraps.

    The span is its own, or that of the first `inner_model` that has one; else as in `edm`. Source: Crowson, K. (2022).
    """
    return edm(denoiser, "data", **more)


def guided_diffusion(net: Net, diffusion: Any = None, *, betas: Any = None, **more: Any) -> ScoreModel:
    """A network of guided-diffusion, improved-diffusion or DiT on `DiscreteVP`, `net(x, timesteps, y=None)`.

    Args:
        diffusion: its GaussianDiffusion, spaced or not, which tells betas, prediction, times and variance; one that is
            LEARNED_RANGE serves `sd.ddpm("learned")`. None: the network predicts the noise, and a variance beside it
            is left out, unless you say learned_variance=True.
        betas: `[T]` where there is no diffusion; None for 1e-4 to 0.02 in a line over T = 1000.

    Raises InvalidArgumentError for a network that predicts x_{t-1}. Source: Nichol & Dhariwal (2021).
    """
    if diffusion is None:
        alone = not more.get("learned_variance")
        return ScoreModel(DiscreteVP(betas), Unwrapped(net, alone), "noise", time=index_time(), **more)
    own, mean, variance = _parts(diffusion, "a GaussianDiffusion", "betas", "model_mean_type", "model_var_type")
    known: Any = {"EPSILON": "noise", "START_X": "data"}
    check_known("model_mean_type", mean.name, known)
    if betas is not None:
        raise InvalidArgumentError("the diffusion has betas: give one of the two")
    labels = torch.as_tensor(getattr(diffusion, "timestep_map", range(len(own))), dtype=torch.float64)
    if getattr(diffusion, "rescale_timesteps", False):
        labels = labels * 1000 / getattr(diffusion, "original_num_steps", len(own))
    ranged = variance.name == "LEARNED_RANGE"  # one that is LEARNED is no place in a range
    net = net if ranged else Unwrapped(net, alone=True)
    process, time = DiscreteVP(torch.as_tensor(own), zero_snr=float(own[-1]) == 1), partial(_label, labels)
    return ScoreModel(process, net, known[mean.name], time=time, learned_variance=ranged, **more)


def denoising_diffusion_pytorch(diffusion: Any, **more: Any) -> ScoreModel:
    """The model of a denoising-diffusion-pytorch GaussianDiffusion on `DiscreteVP`.

    Samples are in [-1, 1] where it has `auto_normalize`: `diffusion.unnormalize(samples)` are images. With
    self-conditioning the model gets None, as at its own first step. Classes are not dropped; with `cond_scale=` they
    guide by `forward_with_cond_scale`. Raises InvalidArgumentError for an unknown objective. Source: Wang, P. (2020).
    """
    model, betas, told = _parts(diffusion, "a GaussianDiffusion", "model", "betas", "objective")
    known: Any = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}
    check_known("objective", told, known)
    guided = "cond_scale" in more
    more = {"cond_drop_prob": 0.0, **more} if "cond_drop_prob" in _arguments(model) and not guided else more
    net = Unwrapped(model.forward_with_cond_scale if guided else model, alone=True)
    return ScoreModel(DiscreteVP(betas), net, known[told], time=index_time(), time_dtype=torch.long, **more)


def velocity(net: Net, data_at: int = 1, **more: Any) -> ScoreModel:
    """A flow-matching network on `Flow`: dx/dt by `net(x, t)`, or by `net(t, x)` where its first argument's name is t.

    data_at: 1 for `x_t = t data + (1 - t) noise` (flow_matching, torchcfm), 0 for `(1 - t) data + t noise` (minRF).
    Trained on pairs of data and noise (optimal transport) it has this flow, but no score: take methods that draw no
    noise. Raises InvalidArgumentError for another data_at. Source: Lipman et al. (2022), eq. 22.
    """
    if data_at not in (0, 1):
        raise InvalidArgumentError(f"data_at must be 1 (t = 1 is data) or 0 (t = 1 is noise), got {data_at!r}")
    first, second = _arguments(net)[:2]
    net = partial(_by_name, net, (second, first)) if first in ("t", "time", "timestep", "timesteps") else net
    if data_at == 0:
        return ScoreModel(Flow(), net, "velocity", **more)
    return ScoreModel(Flow(), net, _data_less_noise, time=partial(_line, 1, -1), **more)


def score_sde(net: Net, process: Any = None, *, continuous: bool = True, N: int = 1000, **more: Any) -> ScoreModel:
    """A network of score_sde_pytorch, `net(x, labels)`, on `VP()` (if None) and `SubVP()` the noise, `VE()` a score.

    Labels are 999 t, on VE sigma. If not `continuous` they are indices 0..N-1: on VE of falling sigmas, on VP of betas
    `beta(i/(N - 1))/N`, by `DiscreteVP`. Raises InvalidTypeError for another process. Source: Song et al. (2021).
    """
    process = VP() if process is None else process
    check_type(process, VP | SubVP | VE, "a network of score_sde is on VP(), SubVP() or VE()")
    if isinstance(process, VE):
        time, kind = (sigma_time, None) if continuous else (partial(_line, N - 1, 1 - N), torch.long)
        return ScoreModel(process, net, "score", time=time, time_dtype=kind, **more)
    if continuous or isinstance(process, SubVP):
        return ScoreModel(process, net, "noise", time=partial(_line, 0, 999), **more)
    betas = torch.linspace(process.beta_min, process.beta_max, N, dtype=torch.float64) / N
    return ScoreModel(DiscreteVP(betas), net, "noise", time=index_time(), **more)


def sbi(estimator: Any, x: Any) -> ScoreModel:
    """A score or flow-matching estimator of sbi, for the posterior given one observation x `[*condition_shape]`.

    Its process is the estimator's, `mean_t_fn` and `std_fn`; a start that holds data is, as sbi's, by `mean_0` and
    `std_0`. Samples are parameters; with `compose_enabled` those are `estimator.from_z(samples)`. Raises
    InvalidArgumentError for another x. Source: Geffner et al. (2023).
    """
    shape, low, high = _parts(estimator, "a vector field estimator of sbi", "condition_shape", "t_min", "t_max")
    x = torch.as_tensor(x)
    if tuple(x.shape) not in (tuple(shape), (1, *shape)):
        raise InvalidArgumentError(f"x must be one observation {list(shape)}, got {list(x.shape)}")
    seen = shared(x.reshape(1, *shape).to(next(estimator.parameters())))
    flow, net = hasattr(estimator, "noise_scale"), partial(_by_name, estimator, ("input", "time"))
    scales: Any = (partial(_scale, function, ...) for function in (estimator.mean_t_fn, estimator.std_fn))
    if flow:  # as it was trained: its mean_t_fn is cut at 0.99
        scales = (partial(sub, 1.0), partial(add, estimator.noise_scale))
    process = Process.from_functions(*scales, t_min=float(low), t_max=float(high))
    model = ScoreModel(process, net, "velocity" if flow else "score", condition=seen)
    if not flow:
        first = _parts(estimator, "a score estimator of sbi", "mean_0", "std_0", "input_shape")
        model.prior = tuple(part.detach().expand(1, *first[2])[0] for part in first[:2])
    return model


def azula(denoiser: Net, *, t_min: float = 0.0, t_max: float = 1.0, **more: Any) -> ScoreModel:
    """A Denoiser of azula, whose posterior's mean is the data, on its schedule's process.

    Raises InvalidArgumentError where alpha/sigma does not fall from t_min to t_max. Source: Rozet, F. (2024).
    """
    (schedule,) = _parts(denoiser, "a Denoiser", "schedule")
    scales: Any = (partial(_scale, schedule, place) for place in (0, 1))
    return ScoreModel(Process.from_functions(*scales, t_min=t_min, t_max=t_max), Unwrapped(denoiser), "data", **more)


def unwrapped(out: Any) -> Tensor:
    """The tensor of a network's answer: itself, its `sample`, a posterior's `mean`, or the only one of a tuple or list.

    Raises ScoreTypeError, which says what to write, for anything else.
    """
    out = out[0] if isinstance(out, tuple | list) and len(out) == 1 else out
    for found in (out, getattr(out, "sample", None), getattr(out, "mean", None)):
        if isinstance(found, Tensor):
            return found
    raise ScoreTypeError(f"the network returned {type(out).__name__}, which is no one tensor{how_to_take(out)}")


@dataclass(frozen=True)
class Unwrapped:
    """A network whose answers are `unwrapped`; `alone`: of twice the channels, the prediction without the variance."""

    net: Net
    alone: bool = False

    def __repr__(self) -> str:
        return f"Unwrapped({type(self.net).__name__})"

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        out = unwrapped(self.net(x, time, **condition))
        return out[:, : x.shape[1]] if self.alone else out


def _by_name(net: Net, names: tuple[str, str], x: Tensor, time: Tensor, **condition: Any) -> Any:
    return net(**dict(zip(names, (x, time))), **condition)


def _data_less_noise(process: Process, level: Level) -> tuple[Tensor, Tensor]:
    return torch.ones_like(level.t), -torch.ones_like(level.t)


def _line(start: float, slope: float, level: Level) -> Tensor:
    return start + slope * level.t


def _label(table: Tensor, level: Level) -> Tensor:
    """The entry at index `t T - 1` of a table `[T]`, linear between entries."""
    place = level.t * len(table) - 1
    low = place.detach().floor().clamp(0, len(table) - 2).long()
    left, right = (torch.take(table.to(low.device), k) for k in (low, low + 1))
    return left + (place - low) * (right - left)


def _scale(schedule: Callable[[Tensor], Any], place: Any, t: Tensor) -> Tensor:
    return schedule(t)[place].reshape(t.shape)  # type: ignore[no-any-return]


def _arguments(net: Any) -> list[str]:
    """The names of a network's arguments, then two empty ones."""
    net = getattr(net, "_orig_mod", net)  # of a compiled one
    try:
        return [*inspect.signature(getattr(net, "forward", net)).parameters, "", ""]
    except (TypeError, ValueError):  # no signature to be had
        return ["", ""]


def _parts(thing: Any, what: str, *names: str) -> list[Any]:
    """Attributes of another library's object. Raises InvalidTypeError unless it has them all."""
    if missing := [name for name in names if not hasattr(thing, name)]:
        raise InvalidTypeError(f"{what} has {', '.join(names)}; {type(thing).__name__} has no {missing[0]}")
    return [getattr(thing, name) for name in names]
