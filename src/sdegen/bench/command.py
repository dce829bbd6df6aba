"""`sdegen bench`: from what is typed to a table, a CSV file and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdegen.bench import files, names, page, tables
from sdegen.bench.contenders import Contender
from sdegen.bench.files import WriteError
from sdegen.bench.orders import Fall, kept_falls
from sdegen.bench.own import loaded
from sdegen.bench.problems import Problem
from sdegen.bench.rows import Rows
from sdegen.bench.runs import Job, Settings, Sweep, collect
from sdegen.bench.store import Store
from sdegen.bench.sweep import plan
from sdegen.bench.targets import metric, most
from sdegen.errors import InvalidArgumentError
from sdegen.processes.process import Process
from sdegen.scores.mixtures import GaussianMixture, MixtureScore

RUNS, CSV, MARKDOWN, PAGE = "runs", "results.csv", "results.md", "index.html"


class Wish(NamedTuple):
    """What was typed, as it is meant."""

    problems: list[Problem]
    contenders: list[Contender]
    budgets: list[int]
    tols: list[float]
    settings: Settings
    out: Path
    command: str
    peers: bool = False
    resume: bool = False
    orders: bool = True
    quiet: bool = False


def wished(args: argparse.Namespace) -> Wish:
    """The arguments as problems, contenders and settings. Raises InvalidArgumentError on what cannot work."""
    problems = [own(args)] if args.model else names.problems(args.problem or "digits")
    if not problems:
        raise InvalidArgumentError("give at least one problem")
    clean = list(problems)
    for error in args.score_error:
        problems += [p.reduced(error) if isinstance(error, torch.dtype) else p.perturbed(*error) for p in clean]
    solvers = names.split(args.solvers)
    if args.grids:
        free = [s for s in solvers if "@" not in s and not s.startswith("plan")]
        solvers += [f"{s}@{g}" for s in free for g in names.split(args.grids)]
    contenders = [names.contender(s) for s in solvers] + (names.peers(args.peers) if args.peers else [])
    default = "sw2,rmse" if problems[0].law is not None or problems[0].data is not None else "rmse"
    metrics = tuple(metric(name) for name in names.split(args.metrics or default))
    settings = Settings(metrics, args.samples, args.seed, args.level, batch_size=args.batch_size)
    return Wish(
        problems,
        contenders,
        args.nfe,
        args.tol,
        settings,
        args.out,
        args.line,
        bool(args.peers),
        args.resume,
        args.orders,
        args.quiet,
    )


def own(args: argparse.Namespace) -> Problem:
    """The problem of a user's function: what it returns, with `--data` and `--shape`."""
    function = loaded(args.model)
    made = function()
    sources = function.sources
    data = None if args.data is None else read(args.data)
    if isinstance(made, Problem):
        made = replace(made, sources=sources)
        return made if data is None else replace(made, law=None, data=data)
    process = getattr(made, "process", None)
    if not isinstance(process, Process) or not callable(made):
        raise InvalidArgumentError(
            f"{args.model} must be or return a sdegen.ScoreModel (or a sdegen.bench.Problem), got {type(made).__name__}"
        )
    law: GaussianMixture | None = made.mixture if isinstance(made, MixtureScore) and data is None else None
    shape = args.shape or (tuple(data.shape[1:]) if data is not None else law and tuple(law.means.shape[1:]))
    if not shape:
        raise InvalidArgumentError(
            "give the shape of a sample as --shape, for example --shape 3,32,32, or data by --data"
        )
    where = Path(args.model.rpartition(":")[0]).stem
    image = shape if len(shape) == 2 or (len(shape) == 3 and shape[0] == 3) else None
    image = tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else image
    return Problem(where, made, shape, law, data, image, None, f"{args.model}: {made!r}", sources)


def read(path: Path) -> Tensor:
    """Data `[N, *S]` of a .npy, .pt or .safetensors file with one array. Raises InvalidArgumentError on any other."""
    try:
        found = _loaded(path)
    except InvalidArgumentError:
        raise
    except Exception as error:
        raise InvalidArgumentError(f"{path} could not be read: {error}") from error
    if isinstance(found, Mapping):
        if len(found) != 1:
            raise InvalidArgumentError(f"{path} must hold one array, it has {', '.join(map(str, found)) or 'none'}")
        found = next(iter(found.values()))
    if not isinstance(found, Tensor) or found.ndim < 2 or not found.is_floating_point():
        got = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise InvalidArgumentError(f"{path} must hold a floating array [N, *S], got {got}")
    bad = int((~found.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise InvalidArgumentError(f"{path} must be finite: {bad} of its {len(found)} rows are not")
    return found


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise InvalidArgumentError(f"there is no file {path}")
    if path.suffix == ".npy":
        import numpy

        return torch.from_numpy(numpy.load(path, allow_pickle=False))
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise InvalidArgumentError("a .safetensors file needs safetensors: pip install 'sdegen[plans]'") from None
        return load_file(path)
    raise InvalidArgumentError(f"data are read from .npy, .pt and .safetensors files, got {path}")


def run(wish: Wish) -> int:
    """Everything; prints the table and writes the files. What is done is written when it is interrupted as well."""
    jobs = plan(wish.problems, wish.contenders, wish.budgets, wish.tols, wish.settings.metrics)
    page.check()
    wish.out.mkdir(parents=True, exist_ok=True)
    for problem in wish.problems if not wish.quiet else ():
        if most(problem, wish.settings.samples) < wish.settings.samples:
            count = most(problem, wish.settings.samples)
            print(f"{problem.name}: {count} samples, as many as one half of the data has (the other makes the floors)")
    store = Store(wish.out / RUNS, wish.resume, _tell)
    done, seen = Sweep(Rows(), {}), dict[str, dict[str, Fall]]()
    try:
        collect(jobs, wish.settings, store, False if wish.quiet else None, done)
        for problem in wish.problems if wish.orders else ():
            seen[problem.name] = kept_falls(problem, wish.contenders, wish.settings, store)
    except BaseException as error:
        _interrupted(wish, jobs, done, seen, store, error)
        raise
    _write(wish, jobs, done, seen)
    if not wish.quiet:
        print(tables.text(done.rows))
        print(f"\nwritten: {wish.out / PAGE}, {CSV}, {MARKDOWN}")
        if store.advice():
            _tell(f"{store.advice()}; --resume takes them from {wish.out / RUNS}")
    return 0


def _tell(sentence: str) -> None:
    print(f"sdegen: {sentence}", file=sys.stderr)


def _interrupted(
    wish: Wish,
    jobs: Sequence[Job],
    done: Sweep,
    seen: Mapping[str, Mapping[str, Fall]],
    store: Store,
    error: BaseException,
) -> None:
    """Says what is kept, and writes what is done; where it cannot be written, the first error is told all the same."""
    again = "the same command with --resume goes on" if store.own and not wish.resume else "the same command goes on"
    _tell(f"{len(done.shown)} of {len(jobs)} runs are kept in {wish.out / RUNS}; {again}")
    if done.rows:
        try:
            _write(wish, jobs, done, seen, f"{again[0].upper()}{again[1:]}.")
        except WriteError as other:
            if not isinstance(error, WriteError):
                _tell(f"error: {other}")


def _write(
    wish: Wish, jobs: Sequence[Job], done: Sweep, seen: Mapping[str, Mapping[str, Fall]], interrupted: str = ""
) -> None:
    """The three files; the tables first, as a page may fail. interrupted: how to go on, where it was."""
    rows: Rows = done.rows
    rows.write(wish.out / CSV)
    files.write(wish.out / MARKDOWN, tables.markdown(rows))
    versions = names.peer_versions() if wish.peers else {}
    report = page.Report(jobs, wish.settings, done, seen, wish.command, versions, interrupted)
    page.write(report, wish.out / PAGE)
