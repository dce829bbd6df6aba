"""Score models in files: the network's weights, and all that a `ScoreModel` says of them, in one safetensors file.

A file holds no code. What is a user's own, a function or a class, is recorded as such, and given again on loading.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, InvalidTypeError, SdegenError, brief
from sdegen.processes.process import Process
from sdegen.processes.records import recorded, restored
from sdegen.processes.sde import SDE
from sdegen.scores import weights
from sdegen.scores.safe import Kind, read_tensors, write_tensors
from sdegen.tensors import named

if TYPE_CHECKING:
    from typing_extensions import Self

_ROOT = __name__.partition(".")[0]
_FORMAT = "sdegen model 1"
_KIND = Kind("model", "ScoreModel.save", "hub")
_FILE = "model.safetensors"
_KEYS = "format sdegen class network config tied process predicts time time_dtype sigma_data cast learned_variance"
_PROCESS = ".process."
"""Before the names of a process's tensors: no name of a module begins with a dot."""
Net = Callable[..., Any]


class Saved:
    """What saves and loads a score model."""

    _times: ClassVar[Mapping[str, Any]]
    """The functions of a level that are known by name; a class stands for its objects, which have `steps`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network's weights, the process, and how the network is asked to one safetensors file.

        A file is replaced as a whole; the same model makes the same bytes. Conditions are not in it, nor the network's
        code; processes, predictions and times of your own are named in it, and given again to `load`.

        Args:
            path: the file, as "model.safetensors".

        Raises:
            InvalidTypeError: there is no `torch.nn.Module`, as behind an exact score.
            InvalidArgumentError: its state holds what is no tensor; the path is a folder; without safetensors.
            FileNotFoundError: there is no such folder.
        """
        model: Any = self
        where = Path(path)
        if where.suffix in weights.PICKLES:
            raise InvalidArgumentError(f"{where} is a name of pickles, and this is a safetensors file: {_FILE}")
        found = weights.found(model)
        tensors, tied = weights.state(found)
        asked, parts = account(model)
        said = {
            "format": _FORMAT,
            "sdegen": sys.modules[_ROOT].__version__,
            "class": type(self).__name__,
            "network": type(found).__name__,
            "config": _config(found),
            "tied": tied,
            **asked,
        }
        write_tensors(where, {**tensors, **parts}, {"sdegen": json.dumps(said)}, _KIND)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        net: Net | None = None,
        *,
        process: Process | None = None,
        predicts: Any = None,
        time: Any = None,
        allow_pickle: bool = False,
        device: torch.device | str | None = None,
        **condition: Any,
    ) -> Self:
        """The score model that `save` wrote: the same samples from a seed, bit for bit.

        Args:
            path: the file.
            net: the network that takes the weights, and their dtypes: an instance of the same architecture, or a
                callable around one. A class, where it derives from `huggingface_hub.PyTorchModelHubMixin`: it is made
                with the arguments that the file holds.
            process, predicts, time: in place of the file's; needed where the file has them as your own.
            allow_pickle: read a pickled state dict too, by `torch.load(weights_only=True)`; process and predicts are
                needed then.
            device: where to; that of `net` if None.
            condition: the conditions, by name, and other keywords of `ScoreModel` in place of the file's.

        Returns:
            The model, its network in evaluation mode.

        Raises:
            FileNotFoundError: there is no file.
            InvalidArgumentError: the file is no such file, or does not fit `net`, which is left as it was.
            InvalidTypeError: `net` cannot be called, or has no module behind it.
        """
        where, own = Path(path), {"process": process, "predicts": predicts, "time": time}
        given = {name: value for name, value in own.items() if value is not None}
        if weights.is_pickle(where):
            said, tensors = given, weights.unpickled(where, allow_pickle, given)
        else:
            said, tensors = _read(where, cls, given)
            tensors.update({name: tensors[kept] for name, kept in said.pop("tied").items()})
        network, config = said.pop("network", "a network"), said.pop("config", None)
        if net is None:
            raise InvalidArgumentError(f"{where} has the weights of {network} and no code: load(path, net) takes it")
        net = _instance(net, config, where) if isinstance(net, type) else net
        maker: Any = cls
        model: Any = maker(**{**said, **condition, "net": net})
        weights.take(weights.found(model), tensors, where)
        model.eval()
        return model if device is None else model.to(device)  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors`, by `save`, to a folder, which is made if there is none."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save(Path(folder) / _FILE)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        net: Net | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """The score model in a folder, or in a repository of the Hugging Face Hub.

        Args:
            source: a folder, or a repository as "owner/name".
            net: as for `load`.
            revision, token, cache_dir: as for `huggingface_hub.hf_hub_download`.
            options: further keywords of `load`.

        Raises:
            InvalidArgumentError: as `load`; without huggingface_hub, where it is needed.
            FileNotFoundError: the folder holds no model.
        """
        if Path(source).is_dir():
            return cls.load(Path(source) / _FILE, net, **options)
        if isinstance(source, os.PathLike) or source.count("/") != 1 or source[:1] in (".", "/", "~"):
            raise FileNotFoundError(f"there is no folder {source}, and it is no name of a repository")
        path = _hub().hf_hub_download(source, _FILE, revision=revision, token=token, cache_dir=cache_dir)
        return cls.load(path, net, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "A score model of sdegen",
    ) -> str:
        """Write the model to a repository of the Hugging Face Hub, which is made if there is none.

        Args:
            repo_id: "owner/name".
            private: whether a new repository is.
            token, revision, commit_message: as for `huggingface_hub.HfApi.upload_folder`.

        Returns:
            The address of the commit.

        Raises:
            InvalidArgumentError: without huggingface_hub; and as `save`.
        """
        api = _hub().HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        return str(done)


def account(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How a network is asked and under which process, as plain data; and the process's tensors by name.

    Raises InvalidArgumentError for a process that is not made of plain numbers.
    """
    process, parts = _process(model.process)
    said = {
        "process": process,
        "predicts": recorded_or_named(model.predicts),
        "time": _time(model.time, model._times),
        "time_dtype": None if model.time_dtype is None else str(model.time_dtype).removeprefix("torch."),
        "sigma_data": float(model.sigma_data),
        "cast": bool(model.cast),
        "learned_variance": model.learned_variance,
    }
    return said, parts


def _process(process: Process) -> tuple[Any, dict[str, Tensor]]:
    """What is recorded of a process, and its tensors by their names in the file."""
    if not _shipped(process):
        return {"own": type(process).__name__.lstrip("_")}, {}
    try:
        values = json.loads(process.to_json())
    except TypeError:
        raise InvalidArgumentError(f"{process} is not made of plain numbers: make it of float(...) of them") from None
    lists = [name for name, value in values.items() if isinstance(value, list)]
    tensors = {_PROCESS + name: torch.tensor(values.pop(name), dtype=torch.float64, device="cpu") for name in lists}
    return values, tensors


def _shipped(process: Any) -> bool:
    """Whether it is of a class of this library that is made of numbers."""
    kind = type(process)
    return kind.__module__.partition(".")[0] == _ROOT and not kind.__name__.startswith("_")


def _time(time: Any, known: Mapping[str, Any]) -> Any:
    """What is recorded of a function of a level."""
    for name, value in known.items():
        if time is value:
            return name
        if type(time) is value:
            return {name: time.steps}
    return recorded_or_named(time)


def recorded_or_named(part: Any) -> Any:
    """A part of a model or a training as plain data; of one that is the user's own, what it or its class is called.

    It is the same in every process: no repr, which may hold an address.
    """
    try:
        return recorded(part)
    except InvalidArgumentError:
        return {"own": named(part if hasattr(part, "__name__") else type(part))}


def _read(path: Path, cls: type[Saved], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says, as keywords of `cls` with `network`, `config` and `tied`; and the weights in it."""
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder: ScoreModel.from_pretrained reads one")
    tensors, words = read_tensors(path, _KIND)
    said = _said(path, words)
    if (kind := said.pop("class")) != cls.__name__:
        raise InvalidArgumentError(f"{path} was saved by {kind}: load it by that class, not by {cls.__name__}")
    parts = {name.removeprefix(_PROCESS): tensors.pop(name) for name in list(tensors) if name.startswith(_PROCESS)}
    try:
        for name in ("process", "predicts", "time"):
            said[name] = given[name] if name in given else _not_own(name, said[name], path)
        if "process" not in given:
            said["process"] = _restored_process(said["process"], parts)
        if "predicts" not in given:
            said["predicts"] = restored(said["predicts"])
        if "time" not in given:
            said["time"] = _restored_time(said["time"], cls._times)
        said["time_dtype"] = None if said["time_dtype"] is None else getattr(torch, said["time_dtype"])
        if not set(said["tied"].values()) <= set(tensors):
            raise ValueError("names are tied to what is not there")
    except SdegenError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    return said, tensors


def _said(path: Path, words: Mapping[str, str]) -> dict[str, Any]:
    """The header's record, of this version. Raises InvalidArgumentError for any other file."""
    if "sdegen" not in words:
        advice = (
            "it holds weights alone; net.load_state_dict(safetensors.torch.load_file(path)) reads them, for a "
            "ScoreModel(process, net, predicts)"
        )
        if words.get("format", "").startswith("sdegen plan"):
            advice = "it holds a plan, which sd.Plan.load reads"
        raise InvalidArgumentError(f"{path} was not written by ScoreModel.save: {advice}")
    try:
        said = json.loads(words["sdegen"])
        form, by = said["format"], said["sdegen"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    if form != _FORMAT:
        raise InvalidArgumentError(f"{path} is of format {form!r}, by sdegen {by}; this version reads {_FORMAT!r}")
    if sorted(said) != sorted(_KEYS.split()):
        raise _damaged(path, f"it has the keys {', '.join(sorted(said))}")
    return {name: value for name, value in said.items() if name not in ("format", "sdegen")}


def _damaged(path: Path, why: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"the header of {path} is not as ScoreModel.save writes it: {brief(str(why), 200)}")


def _not_own(name: str, value: Any, path: Path) -> Any:
    """What is recorded, or an error where that is no more than the name of a user's own."""
    if isinstance(value, Mapping) and "own" in value:
        raise InvalidArgumentError(
            f"the {name} of {path} is your own, {value['own']}: load(path, net, {name}=...) takes it"
        )
    return value


def _restored_process(values: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Process:
    """The process of a record and its tensors."""
    whole = {**values, **{name: part.tolist() for name, part in parts.items()}}
    process: Any = SDE.from_json(json.dumps(whole))
    if not isinstance(process, Process) or not _shipped(process):
        raise InvalidArgumentError(f"{type(process).__name__} is here no process of this library: give process=...")
    return process


def _restored_time(value: Any, known: Mapping[str, Any]) -> Any:
    """The function of a level that is recorded by its name, made where it has a number of steps."""
    if isinstance(value, str):
        return known[value]
    name = next(iter(value))
    return known[name](value[name]) if name in known else restored(value)


def _config(module: torch.nn.Module) -> Any:
    """The arguments that a module of `PyTorchModelHubMixin` was made with; None for any other."""
    if not hasattr(type(module), "_hub_mixin_config"):
        return None
    config: Any = module._hub_mixin_config
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config or {})


def _instance(net: Any, config: Any, path: Path) -> Net:
    """The network of a class that keeps its arguments, made anew with those in the file."""
    if not issubclass(net, _hub().PyTorchModelHubMixin):
        raise InvalidTypeError(
            f"net must be an instance, got the class {net.__name__}: make one first, or derive it from "
            "huggingface_hub.PyTorchModelHubMixin, which keeps its arguments"
        )
    if not isinstance(config, dict):
        raise InvalidArgumentError(f"{path} has no arguments of {net.__name__}: give an instance of it")
    known = net._hub_mixin_init_parameters
    try:
        if "config" in known and "config" not in config:
            return net(config=net._decode_arg(known["config"].annotation, config))  # type: ignore[no-any-return]
        decoded = {k: net._decode_arg(known[k].annotation, v) if k in known else v for k, v in config.items()}
        return net(**decoded)  # type: ignore[no-any-return]
    except TypeError as error:
        raise InvalidArgumentError(
            f"{net.__name__} is not made by the arguments in {path}, {brief(config)}: {error}; give an instance of it"
        ) from None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InvalidArgumentError("the Hugging Face Hub needs huggingface_hub: pip install 'sdegen[hub]'") from None
    return huggingface_hub
