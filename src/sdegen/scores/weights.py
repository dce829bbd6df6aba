"""A network's weights as named tensors: taken from its module, given to another, read from a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, brief
from sdegen.tensors import named

PICKLES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})


def found(model: Any) -> torch.nn.Module:
    """The module behind a score model, without what compiles it or spreads it over devices.

    Raises InvalidTypeError where there is none.
    """
    module: torch.nn.Module | None = model.module
    if module is None:
        what = "it is an exact score: keep its data"
        if not model.exact:
            what = f"no torch.nn.Module was found behind {named(model.net)}; give module=net where there is one"
        raise InvalidTypeError(f"{brief(model)} has no weights: {what}")
    spread: Any = torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel
    while "_orig_mod" in (parts := dict(module.named_children())) or isinstance(module, spread):
        module = parts["module" if isinstance(module, spread) else "_orig_mod"]
    return module


def state(module: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a module by name, on the host, each by itself; and the names that stand for another's.

    Raises InvalidArgumentError for a state that is not of dense tensors with values.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    taken: set[int] = set()
    for name, value in module.state_dict().items():
        if not torch.is_tensor(value):
            raise InvalidArgumentError(
                f"{name} of {type(module).__name__} is {brief(value)} and no tensor: keep its code"
            )
        if value.is_meta or value.layout != torch.strided or value.is_quantized or value.dtype == torch.complex128:
            raise InvalidArgumentError(
                f"{name} of {type(module).__name__} is no dense tensor with values that safetensors keeps: "
                f"{value.dtype}, {value.layout}, on {value.device}"
            )
        same = value.data_ptr(), value.dtype, value.shape, value.stride(), value.device
        if value.numel() and first.setdefault(same, name) != name:
            tied[name] = first[same]
            continue
        alone = value.detach().to("cpu").contiguous()
        memory = alone.untyped_storage().data_ptr()
        tensors[name] = alone.clone() if memory in taken else alone  # safetensors refuses two parts of one memory
        taken.add(memory)
    return tensors, tied


def take(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module its weights, and their dtypes.

    Raises InvalidArgumentError, and leaves it as it was, unless the names and shapes are its own.
    """
    own = module.state_dict(keep_vars=True)
    wrong = [
        f"{kind}: {_some(names)}"
        for kind, names in {
            "missing in the file": [name for name in own if name not in tensors],
            "unexpected": [name for name in tensors if name not in own],
            "of another shape or kind": [
                f"{name} {list(tensors[name].shape)}, not {list(value.shape)}"
                for name, value in own.items()
                if name in tensors and not _alike(tensors[name], value)
            ],
        }.items()
        if names
    ]
    if wrong:
        raise InvalidArgumentError(
            f"the weights in {path} are not those of {type(module).__name__}; {'; '.join(wrong)}"
        )
    for name, value in own.items():
        if value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)  # the same parameter, whoever else holds it
    module.load_state_dict(dict(tensors))


def _alike(tensor: Tensor, value: Any) -> bool:
    """Whether a module's own value can hold a tensor: of its shape, floating where it is, and with values at all."""
    kinds = [(v.is_floating_point(), v.is_complex(), v.dtype == torch.bool) for v in (tensor, value)]
    return tensor.shape == value.shape and kinds[0] == kinds[1] and not value.is_meta


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or torch's archive of one, by its bytes, and where those say nothing by its name."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
    if head[8:] == b"{":  # where the header of safetensors begins
        return False
    return path.suffix in PICKLES or head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def unpickled(path: Path, allowed: bool, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a pickle, which is read as far as it is tensors.

    Raises FileNotFoundError without a file, InvalidArgumentError unless it is allowed, told what it is of, and one.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no model {path}")
    if not allowed or not {"process", "predicts"} <= set(given):
        reason = "says nothing of the model" if allowed else "can run code when it is read"
        raise InvalidArgumentError(
            f"{path} is a pickle, which {reason}: for a state dict of your own write ScoreModel.load(path, net, "
            "process=..., predicts=..., allow_pickle=True), which reads tensors alone, and then save it"
        )
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what is wrong in the file
        raise InvalidArgumentError(
            f"{path} is no pickle of tensors alone ({type(error).__name__}): of a module that was saved whole, load it "
            "as you always do and save its net.state_dict()"
        ) from None
    if not isinstance(read, Mapping) or not read or not all(map(torch.is_tensor, read.values())):
        keys = f"a dict of {_some(list(map(str, read)))}" if isinstance(read, Mapping) else brief(read)
        raise InvalidArgumentError(f"{path} holds {keys}, and no state dict of tensors: save that one alone")
    return dict(read)
