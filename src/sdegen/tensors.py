"""Weights against states: broadcasting, working precision, linear combinations, the three kinds of diffusion."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, ScoreError, ScoreShapeError, ScoreTypeError, brief

try:  # private names of torch, which may go: without them what torch.func and tracing wrap is taken for plain
    from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
    from torch._subclasses import FakeTensor

    wrapped = is_functorch_wrapped_tensor
except ImportError:
    FakeTensor = type("FakeTensor", (), {})  # type: ignore[assignment, misc]

    def wrapped(tensor: Tensor) -> bool:
        return False


T = TypeVar("T")
_HALF = (torch.float16, torch.bfloat16)
STATES = (*_HALF, torch.float32, torch.float64)
"""The dtypes that states may have."""
STATE_NAMES = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
_HOST = torch.device("cpu")
WITHOUT_FLOAT64 = ["mps", "meta"]
"""The types of devices that have no float64: levels and noise are made on the host there."""
_AT_ONCE = 1 << 16
"""How many elements a sum takes at a time on a CPU."""


def home(device: torch.device) -> torch.device:
    """Where a device's float64 numbers lie: on it, on the host where it has none, as Apple's GPUs."""
    return _HOST if device.type in WITHOUT_FLOAT64 else device


def at_home(x: Tensor) -> Tensor:
    """Numbers in float64, where a device's lie; NaN for those of a device without values."""
    if x.is_meta:
        return torch.full(x.shape, torch.nan, dtype=torch.float64, device=_HOST)
    return x.to(home(x.device)).double()


def like(weight: Tensor, x: Tensor) -> Tensor:
    """A weight `[]` or `[B]` in x's dtype, shaped to multiply x `[B, *S]`; `[]` may stay on the host."""
    weight = weight.to(x.dtype)
    if weight.ndim == 0:
        return weight
    if weight.device != x.device:
        weight = weight.to(x.device)
    return weight.reshape(-1, *(1,) * (x.ndim - 1))


def widen(x: Tensor) -> Tensor:
    """x in the precision of step arithmetic: float32 for half-precision states, its own dtype otherwise."""
    return x.float() if x.dtype in _HALF else x


def finite_rows(x: Tensor) -> Tensor:
    """Which rows of x `[B, *S]` are finite, `[B]` bool: the largest magnitude is NaN or Inf just where a value is."""
    flat = x.detach().flatten(1)
    return flat.abs().amax(1).isfinite() if flat.shape[1] else x.new_ones(x.shape[0], dtype=torch.bool)


def expect_like(value: object, x: Tensor, what: str) -> Tensor:
    """The value, or InvalidArgumentError (`what` + ' like x, ...') unless it is a tensor of x's shape and dtype."""
    if isinstance(value, Tensor) and value.shape == x.shape and value.dtype == x.dtype:
        return value
    raise InvalidArgumentError(f"{what} like x, {list(x.shape)} of {x.dtype}; got {described(value)}")


def described(value: object) -> str:
    """A tensor's shape and dtype, the repr of anything else: for what an error says it got."""
    return f"{list(value.shape)} of {value.dtype}" if torch.is_tensor(value) else repr(value)


def check_type(value: object, kind: Any, must: str, advice: str = "") -> None:
    """Raises InvalidTypeError, `must` + ', got ...' + advice, unless the value is of a type or one of several."""
    if not isinstance(value, kind):
        got = type(value).__name__ if kind is Tensor or "\n" in repr(value) else brief(value)
        raise InvalidTypeError(f"{must}, got {got}{advice}")


def check_whole(name: str, value: int, most: float = math.inf) -> None:
    """Raises InvalidArgumentError unless the value is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        allowed = ">= 1" if math.isinf(most) else f"from 1 to {most}"
        raise InvalidArgumentError(f"{name} must be a whole number {allowed}, got {value!r}")


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """`sum w v` over pairs `(w, v)`, weights w `[]`, `[B]` or floats, states v `[B, *S]`: what a step is made of.

    In working precision: float32 for half-precision states, which `.to(x.dtype)` brings back. A weight that is the
    number 0 leaves its state out.
    """
    total: Tensor | None = None
    owned = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    for weight, value in terms:
        if value.dtype in _HALF:
            value = value.float()
        times: float | None = None
        if isinstance(weight, Tensor):
            value = like(weight, value) * value
        elif weight == 0.0:
            continue
        else:
            times = weight
        if total is None:
            total = value if times is None else times * value
        # without another large tensor: memory that is new costs more than the sum
        elif owned and value.shape == total.shape and value.dtype == total.dtype and not wrapped(value):
            total.add_(value, alpha=times or 1.0)
        else:
            total = torch.add(total, value, alpha=times or 1.0)
    return 0.0 * terms[0][1] if total is None else total


def length(a: Tensor, b: Tensor | float) -> Tensor:
    """`sqrt(a^2 + b^2)` by operations whose bits do not depend on how many there are, as torch.hypot's do on a CPU."""
    return torch.sqrt(a * a + b * b)


def power(x: Tensor, exponent: Tensor | float) -> Tensor:
    """`x^exponent` for x > 0, by operations whose bits do not depend on how many there are, as torch.pow's do."""
    return torch.exp(torch.log(x) * exponent)


def mean_square(x: Tensor) -> Tensor:
    """The mean of the squares of each sample of x `[B, *S]`, `[B]` in float64, by pairs.

    The order of the sum depends on a sample's size alone, so its bits do not depend on the batch, as those of `sum` do.
    """
    flat = x.flatten(1)
    count, size = flat.shape
    if not size:
        return x.new_zeros(count, dtype=torch.float64, device=home(x.device))
    # some rows at a time, which bounds the temporaries; bits do not change
    rows = max(1, (_AT_ONCE if flat.device.type == "cpu" else 64 * _AT_ONCE) // size)
    if count <= rows or torch.compiler.is_compiling():
        return _paired(flat) / size
    return torch.cat([_paired(flat[k : k + rows]) for k in range(0, count, rows)]) / size


def _paired(flat: Tensor) -> Tensor:
    """The sum of squares of each row, halves added until one column is left."""
    there = home(flat.device)
    flat = (flat.double() if there == flat.device else flat.float()).square()
    while flat.shape[1] > 1:
        half = flat.shape[1] // 2
        added = flat[:, :half] + flat[:, half : 2 * half]
        flat = torch.cat([added, flat[:, 2 * half :]], 1) if flat.shape[1] % 2 else added
    return flat[:, 0].to(there).double()


def softplus(x: Tensor) -> Tensor:
    """`log(1 + e^x)` to rounding: torch's own leaves its correction out from 20 on, where that is still 2e-9.

    Its bits do not depend on how many x there are, as those of torch's do on a CPU.
    """
    size = x.abs()
    return torch.log1p(torch.exp(-size)) + (x + size) / 2


def as_time(t: Tensor | float | Sequence[float]) -> Tensor:
    """A time, or several, as a float64 tensor."""
    # where a tensor lies it stays; whatever torch's default device is, levels live on the host
    return t.to(torch.float64) if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64, device="cpu")


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is; an array on the host in its own dtype, plain numbers in float64."""
    if torch.is_tensor(value):
        return value
    return torch.as_tensor(value, dtype=None if has_dtype(value) else torch.float64, device="cpu")


def readable(x: Tensor) -> bool:
    """Whether values can be read on the host: not while tracing or capturing, in vmap, of a FakeTensor or on meta."""
    if torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor):
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    while wrapped(x):
        if is_batchedtensor(x):
            return False
        x = get_unwrapped(x)
    return True


def has_dtype(value: Any) -> bool:
    """Whether a value is an array or a tensor, with a dtype of its own, and not plain numbers."""
    return hasattr(value, "dtype")


def is_row(value: Any) -> bool:
    """Whether a value may be numbers in a row: an array, a tensor, or a sequence that is no text."""
    return has_dtype(value) or (isinstance(value, Sequence) and type(value) is not str)


def named(value: Any) -> str:
    """The name of a function or a class, the repr of anything else."""
    return str(getattr(value, "__name__", repr(value)))


def version(x: Tensor) -> int | None:
    """How often x was edited in place; None where that is not counted."""
    return None if torch.compiler.is_dynamo_compiling() or x.is_inference() else x._version


def unedited(what: str, function: Callable[..., T], x: Tensor, *rest: Any) -> T:
    """`function(x, *rest)`. Raises InvalidArgumentError if it edited x."""
    before = version(x)
    answer = function(x, *rest)
    if version(x) != before:
        raise InvalidArgumentError(f"{what} edited x in place; return a new tensor (for example x * 2, not x.mul_(2))")
    return answer


def call_score(
    function: Callable[..., Any],
    x: Tensor,
    time: Tensor,
    condition: Mapping[str, Any] | None = None,
    *,
    cast: bool = False,
    shape: torch.Size | None = None,
) -> Tensor:
    """`function(x, time, **condition)`, checked: a tensor of `shape` (x's unless given), x's dtype, device; x unedited.

    Raises ScoreShapeError, ScoreTypeError, ScoreError. `cast=True` converts another floating dtype instead of refusing.
    """
    shape = x.shape if shape is None else shape
    watch = not torch.compiler.is_dynamo_compiling() and not x.is_inference()
    before = x._version if watch else 0
    out = function(x, time, **(condition or {}))
    if watch and x._version != before:
        raise ScoreError("the score function modified its input x in place; return a new tensor (x * 2, not x.mul_(2))")
    if not isinstance(out, Tensor):
        raise ScoreTypeError(
            f"the score function returned {type(out).__name__}; it must return a torch.Tensor{how_to_take(out)}"
        )
    if out.shape != shape:
        raise ScoreShapeError(
            f"the score function returned {list(out.shape)} for x {list(x.shape)}; it must return shape {list(shape)}"
            + _channels(out.shape, x.shape, shape)
        )
    if out.device != x.device:
        raise ScoreTypeError(f"the score function returned a tensor on {out.device} for x on {x.device}; move one")
    if out.dtype != x.dtype:
        if not (cast and out.is_floating_point()):
            raise ScoreTypeError(
                f"the score function returned dtype {out.dtype} for x of dtype {x.dtype}; it must return x's dtype "
                "(ScoreModel(..., cast=True) converts another floating dtype)"
            )
        out = out.to(x.dtype)
    return out


def _channels(got: torch.Size, given: torch.Size, wanted: torch.Size) -> str:
    """What to do about half, or twice, the channels that were wanted."""
    other = [k for k in range(1, len(given)) if len(got) == len(given) and got[k] != given[k]]
    if wanted != given and len(wanted) == len(given):
        return "; with learned_variance=True these are a prediction and a variance" + "; leave it out" * (not other)
    if wanted != given or len(other) != 1 or got[0] != given[0] or got[other[0]] != 2 * given[other[0]]:
        return ""
    both, alone = "ScoreModel(..., learned_variance=True), or " * (other == [1]), "lambda x, t: net(x, t).chunk"
    return f"; twice the channels are a prediction and a variance: {both}{alone}(2, {other[0]})[0] for the first"


def how_to_take(out: Any) -> str:
    """How to take the tensor out of what a network returned: the line to write."""
    named_parts = ("sample", "pred", "mean", *getattr(out, "__dict__", ()))
    known = [f".{name}" for name in named_parts if torch.is_tensor(getattr(out, name, None))]
    if isinstance(out, Mapping | list | tuple):
        known.append(f"[{next(iter(out), ...)!r}]" if isinstance(out, Mapping) else "[0]")
    return f": lambda x, t: net(x, t){known[0]}, both with **conditions where there are any" if known else ""


def batch_time(t: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A value `[]` or `[B]` as `[B]` on x's device and dtype, without waiting for the device."""
    dtype = dtype or x.dtype
    if not dtype.is_floating_point:
        t = t.round()  # a whole number may come back a rounding below itself, and a cast would cut it
    # a single floating value joins in the sum's own dtype, rounded as it would be before
    same = t.ndim == 0 and dtype.is_floating_point
    if not same:
        t = t.to(dtype)
    return x.new_zeros(x.shape[0], dtype=dtype) + (t if t.ndim == 0 else t.to(x.device))


def check_floating(x: Any, name: str = "x") -> None:
    """Raises InvalidTypeError unless x is a dense tensor of a floating dtype."""
    check_type(x, Tensor, f"{name} must be a torch.Tensor of a floating dtype")
    if x.layout != torch.strided:
        raise InvalidTypeError(f"{name} must be dense, got {x.layout}; convert it, {name}.to_dense()")
    if x.dtype not in STATES:
        scaled = " / 127.5 - 1" * (x.dtype == torch.uint8)
        advice = f"convert it, {name if name.isidentifier() else 'x'}.float()" + scaled
        if x.is_complex():
            advice = "sample its parts, torch.view_as_real(x) [B, *S, 2]; torch.view_as_complex takes them back"
        raise InvalidTypeError(f"{name} must be of a floating dtype, {STATE_NAMES}, got {x.dtype}; {advice}")


def check_state(x: Any, name: str = "x", when: str = ", before the first step") -> None:
    """Raises unless x is a finite floating tensor `[B, *S]` with at least one sample dimension."""
    check_floating(x, name)
    if x.ndim < 2:
        raise InvalidArgumentError(
            f"{name} must be [B, *S], a batch and at least one sample dimension, got shape {list(x.shape)}; "
            f"one sample of D numbers is {name}[None], B samples of one number are {name}[:, None]"
        )
    if readable(x):
        bad = (~finite_rows(x)).nonzero().flatten().tolist()
        if bad:
            raise InvalidArgumentError(f"{name} is NaN or Inf in rows {bad[:8]} of {x.shape[0]}{when}")


Numbers: TypeAlias = Any  # a tensor, an array or nested sequences of numbers


def tensor(name: str, value: Numbers) -> Tensor:
    """Real, finite numbers in their own dtype; plain Python numbers are float64."""
    try:
        found = as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"{name} must be a tensor, an array or (nested lists of) numbers, got {type(value).__name__}"
        ) from error
    if found.is_complex() or found.dtype == torch.bool:
        advice = "take torch.view_as_real of it" if found.is_complex() else "convert it to float64"
        raise InvalidTypeError(f"{name} must be real numbers, got dtype {found.dtype}; {advice}")
    if readable(found) and not bool(found.isfinite().all()):
        raise InvalidArgumentError(
            f"{name} must be finite; {int((~found.isfinite()).sum())} of its {found.numel()} numbers are not"
        )
    return found.detach()


def numbers(name: str, value: Numbers) -> Tensor:
    """A float64 copy of real, finite numbers."""
    return tensor(name, value).to(torch.float64, copy=True).contiguous()


def map_tensors(f: Callable[..., Any], tree: T, *others: T) -> T:
    """Maps `f` over the tensors of matching pytrees; other leaves come from the first."""
    made: Any = tree
    if isinstance(tree, tuple):
        made = getattr(type(tree), "_make", tuple)([map_tensors(f, *parts) for parts in zip(tree, *others)])
    elif torch.is_tensor(tree):
        made = f(tree, *others)
    return made  # type: ignore[no-any-return]


def where_rows(accept: bool | Tensor, new: T, old: T) -> T:
    """`new` in the rows where `accept` `[B]`, `old` in the others; tensors `[]` belong to no row and are new."""
    if type(accept) is bool:
        return new if accept else old

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        if a.ndim == 0:
            return a
        rows = accept if accept.device == a.device else accept.to(a.device)
        return torch.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return map_tensors(chosen, new, old)


def take_rows(tree: T, index: Tensor) -> T:
    """The rows `index` of every tensor, wherever each lies; tensors `[]` belong to no row."""
    return map_tensors(lambda leaf: leaf[index.to(leaf.device, non_blocking=True)] if leaf.ndim else leaf, tree)


def expand_rows(tree: T, count: int, device: torch.device) -> T:
    """Values `[]` or `[count]` as `[count]` on a device."""
    return map_tensors(lambda leaf: leaf.to(device).expand(count), tree)


def cat_rows(first: T, second: T) -> T:
    """The rows of one tree, then those of another of the same structure."""
    return map_tensors(lambda *leaves: cat(leaves) if leaves[0].ndim else leaves[0], first, second)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Rows after rows. Autocast looks at what `torch.cat` is given, and knows no float16 on a CPU."""
    with uncast(parts[0].device):
        return torch.cat(list(parts))


def uncast(device: torch.device) -> Any:
    """A context without autocast, for the library's own sums."""
    able = torch.amp.is_autocast_available(device.type)  # some devices have no autocast
    return torch.autocast(device.type, enabled=False) if able else contextlib.nullcontext()
