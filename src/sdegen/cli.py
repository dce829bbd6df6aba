"""The command `sdegen`. Torch aside (the package needs it), whatever is slow to import is so only when it is used."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import sdegen
from sdegen.errors import InvalidArgumentError, InvalidTypeError, SdegenError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130

DEMO = """\
Sample real handwritten digits with every method and measure how far each is from the exact law.

What is run: the 1,797 images of 8x8 bundled with scikit-learn are fitted by a mixture of 20 Gaussians. Its score under
the VP process is known exactly, so what is measured is the error of the solvers and of nothing else. Each method draws
the same number of samples within each budget of network evaluations (NFE), and their sliced Wasserstein-2 distance to
exact samples of the mixture is compared with that between two sets of exact samples, the floor. Then a small network is
trained on 1,500 of the digits, and its samples and the mixture's are compared with the 297 others. It takes about four
minutes on two cores, or a minute with --quick, and the same seed gives the same numbers (seconds excepted).

What is written, into the folder --out:
  digits.png         generated digits beside real ones
  trajectories.png   how samples form along the steps
  quality.png        NFE against distance, a line per method
  overview.png       generated digits and NFE against distance in one picture
  results.csv        the numbers: method, budget, nfe, distance, seconds, floor
and of the network, unless --quick is said:
  network.png        its samples by 5, 10, 20 evaluations, beside the mixture's and beside real digits
  training.png       its loss by level, and its error on held-out digits beside the mixture's
  network.csv        distance, precision and recall; audit.txt, its diagnosis; network/, the run (sdegen sample)
"""


BENCH = """\
Which sampler, which grid, how many steps? Measured, on a problem with an exact answer or on your own model.

A built-in problem is a Gaussian mixture, whose score is exact: grid, rings (2-D), digits (64-D), images (3072-D), stiff
(8-D), each under a process: digits-VP, digits-VE, digits-EDM, digits-Flow, or digits-* for all. A model of your own is
path.py:function, which takes nothing and returns a sdegen.ScoreModel.

Solvers are named as in sdegen, with their order: default, ddim, dpmpp2, unipc3, heun, pc, adams, "dpmpp(2,
singlestep=True)"; a grid follows an @, as in dpmpp2@karras; plan1000 is calibrated with so many evaluations of its own.

Metrics: rmse, sw2, w2, mmd, energy, ksd, mean, covariance, modes, loglik, frechet, kid, precision, recall and others;
each with an interval, and its floor: what as many exact samples show.

What is written, into the folder --out:
  index.html    the page: tables and pictures, one file, no network needed
  results.csv   every number
  results.md    the tables
  runs/         what was run; the same command goes on from there, and runs nothing twice. What rests on a file of your
                own is run again, as it may have changed, unless you say --resume
"""

TRAIN = """\
Train a small network on data of your own, and keep it in a folder from which `sdegen sample` draws.

Data are digits (scikit-learn's 1,797 of 8x8), a .npy file [N, ...], or a folder of images of one size; bytes are
brought to [-1, 1]. Images get a U-Net, all else a residual network, with EDM's preconditioning and loss under the VP
process, on data brought to unit scale. The same command goes on where it was stopped.

What is written, into the folder --out:
  model.safetensors        the averaged weights, for sdegen.ScoreModel.load
  run.json                 the network, and the data's shape and scale
  checkpoint.safetensors   where the training is
"""


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (try '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 on failure, 2 on a user's mistake, 130 when interrupted."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # argparse leaves this way after --help, --version and errors
        return int(end.code or 0)
    args.line = shlex.join(["sdegen", *(sys.argv[1:] if argv is None else argv)])
    try:
        return int(args.command(args))
    except SystemExit as end:  # of a user's code: whatever status it asks for, the command has not done its work
        from sdegen.bench.own import exited

        return _tell(f"error: {exited('code of your own', end)}", FAILURE)
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)
    except (InvalidArgumentError, InvalidTypeError) as error:
        return _tell(f"error: {error}", USAGE)
    except SdegenError as error:
        return _tell(f"error: {error}", FAILURE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sdegen", description="SDE and ODE solvers for score-based generative models.")
    parser.add_argument("--version", action="version", version=f"sdegen {sdegen.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = _command(commands, "demo", _demo, "sample handwritten digits with every method: a table and pictures", DEMO)
    demo.add_argument("--out", type=_folder, default=Path("demo-output"), metavar="DIR", help="default: demo-output")
    demo.add_argument(
        "--seed", type=_number(0, 2**63 - 1), default=0, metavar="N", help="of all randomness; default: 0"
    )
    demo.add_argument("--samples", type=_number(2), metavar="N", help="per method and budget; default: 2000")
    demo.add_argument(
        "--methods",
        type=_list(_method),
        metavar="NAME,...",
        help="of euler_maruyama,pc,ddim,dpmpp,unipc,default; default: all",
    )
    demo.add_argument(
        "--nfe",
        type=_list(_number(2)),
        metavar="N,...",
        help="budgets, the last denoising included; default: 5,10,20,50,100",
    )
    demo.add_argument("--quiet", action="store_true", help="print nothing; write the files")
    demo.add_argument("--quick", action="store_true", help="the exact mixture alone: no network is trained")
    _add_bench(commands)
    _add_runs(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], told: str, text: str
) -> argparse.ArgumentParser:
    """The parser of a command: told in a line among the others, and by its text when it is asked for alone."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=told, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=run)
    return parser


def _add_runs(commands: Any) -> None:
    add = _command(commands, "train", _train, "train a small network on your data", TRAIN).add_argument
    add("--data", required=True, metavar="SOURCE", help="digits, a file.npy, or a folder of images")
    add("--out", type=_folder, required=True, metavar="DIR", help="the folder of the run")
    add("--steps", type=_number(1), default=2000, metavar="N", help="default: 2000")
    add("--batch", type=_number(1), default=128, metavar="N", help="samples a step; default: 128")
    add(
        "--lr",
        type=_share,
        default=2e-3,
        metavar="R",
        help="the highest, before a cosine to 0; default: 0.002",
    )
    add(
        "--width",
        type=_number(1),
        metavar="N",
        help="of the network; default: 32 channels for images, 128 for all else",
    )
    add("--seed", type=_number(0, 2**63 - 1), default=0, metavar="N", help="of all randomness; default: 0")
    add("--quiet", action="store_true", help="print nothing; write the files")
    add = _command(commands, "sample", _sample, "draw samples of a run", "Draw samples of a trained run.").add_argument
    add("run", type=Path, metavar="DIR", help="the folder of sdegen train")
    add("--n", type=_number(1), default=64, metavar="N", help="how many; default: 64")
    add("--steps", type=_number(1), default=20, metavar="N", help="of the default method; default: 20")
    add("--seed", type=_number(0, 2**63 - 1), metavar="N", help="default: another at every call")
    add("--out", type=Path, default=Path("samples.png"), metavar="FILE", help=".png or .npy; default: samples.png")


def _add_bench(commands: Any) -> None:
    told = "step counts against quality, of solvers here and in other libraries: a table and a page"
    add = _command(commands, "bench", _bench, told, BENCH).add_argument
    add("--problem", metavar="NAME,...", help="built-in problems; default: digits")
    add("--model", metavar="FILE:FUNCTION", help="a model of your own, in place of --problem")
    add("--data", type=Path, metavar="FILE", help="samples of the data [N, *S]: .npy, .pt or .safetensors, for --model")
    add("--shape", type=_shape, metavar="N,...", help="of one sample of --model, where there are no data to tell it")
    add("--solvers", default="default,dpmpp2,unipc3,pc", metavar="NAME,...", help="default: default,dpmpp2,unipc3,pc")
    add("--grids", metavar="NAME,...", help="run every solver on these grids as well: karras, by_snr, angular, ...")
    add("--nfe", type=_list(_number(1)), default=[5, 10, 20, 50], metavar="N,...", help="default: 5,10,20,50")
    add("--tol", type=_list(_share), default=[1e-2, 1e-3], metavar="T,...", help="of adaptive ones; default: 1e-2,1e-3")
    add("--metrics", metavar="NAME,...", help="default: sw2,rmse; rmse alone for a model without data")
    add("--samples", type=_number(2), default=1000, metavar="N", help="per solver and budget; default: 1000")
    add("--seed", type=_number(0, 2**63 - 1), default=0, metavar="N", help="of all randomness; default: 0")
    add("--level", type=_share, default=0.95, metavar="P", help="of the intervals; default: 0.95")
    add("--batch-size", type=_number(1), metavar="N", help="how many samples the network sees at once; default: all")
    add(
        "--score-error",
        type=_list(_score_error),
        default=[],
        metavar="SIZE[:WHERE],...",
        help="once more with a smooth error of this size in the score, at low, high or all noise, as 0.05:low; or with "
        "the score in bfloat16 or float16",
    )
    add(
        "--peers",
        nargs="?",
        const="usual",
        default="",
        metavar="LIBRARY,...",
        help="other libraries' samplers on the same score: the usual ones, all, or those of the libraries named",
    )
    add(
        "--resume",
        action="store_true",
        help="take kept runs of code of your own as well, where its files, what they import and its numbers are the "
        "same; what else it reads is not looked at",
    )
    add("--no-orders", dest="orders", action="store_false", help="do not measure the orders")
    add("--out", type=_folder, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    add("--quiet", action="store_true", help="print nothing; write the files")


def _bench(args: argparse.Namespace) -> int:
    import torch

    from sdegen.bench import command

    if args.model and args.problem:
        return _tell("error: give --problem or --model, not both", USAGE)
    if not args.model and (args.data or args.shape):
        return _tell("error: --data and --shape go with --model", USAGE)
    threads = torch.get_num_threads()
    if not args.model:
        torch.set_num_threads(1)  # as for the demonstration
    try:
        return command.run(command.wished(args))
    except SdegenError:
        raise
    except BrokenPipeError:  # whoever read the table has read enough; the files are written
        sys.stderr.close()
        return 0
    except OSError as error:
        return _tell(f"error: cannot write to {args.out}: {error.strerror or error}", USAGE)
    finally:
        torch.set_num_threads(threads)


def _demo(args: argparse.Namespace) -> int:
    import torch

    from sdegen import demo

    given = {"samples": args.samples, "methods": args.methods, "budgets": args.nfe}
    threads = torch.get_num_threads()
    # The exact score is many small products: more threads gain little, and lose much where the cores are shared.
    torch.set_num_threads(1)
    try:
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        demo.run(args.out, seed=args.seed, quick=args.quick, quiet=args.quiet, **chosen)
    except OSError as error:
        return _tell(f"error: cannot write to {args.out}: {error.strerror or error}", USAGE)
    finally:
        torch.set_num_threads(threads)
    return 0


def _train(args: argparse.Namespace) -> int:
    from sdegen.demo import runs
    from sdegen.training import data

    sizes = {name: getattr(args, name) for name in ("steps", "batch", "lr", "width", "seed")}
    try:
        found = data.read(args.data)
    except OSError as error:
        return _tell(f"error: cannot read {args.data}: {error.strerror or error}", USAGE)
    try:
        if not args.quiet and (args.out / runs.CHECKPOINT).exists():
            print(f"Going on from {args.out / runs.CHECKPOINT}")
        for state in runs.fit(found, args.out, progress=False if args.quiet else None, **sizes):
            if not args.quiet and (state.step % max(1, state.steps // 10) == 0 or state.step == state.steps):
                means = state.by_level.loss.nanmean()
                print(f"step {state.step} of {state.steps}: mean loss over the levels {means:.4f}", flush=True)
        if not args.quiet:
            print(f"Written to {args.out}. Next: sdegen sample {args.out} --out samples.png")
    except OSError as error:
        return _tell(f"error: cannot write to {args.out}: {error.strerror or error}", USAGE)
    return 0


def _sample(args: argparse.Namespace) -> int:
    from sdegen.demo import runs

    try:
        runs.draw(args.run, args.n, steps=args.steps, out=args.out, seed=args.seed)
    except OSError as error:
        return _tell(f"error: cannot write {args.out}: {error.strerror or error}", USAGE)
    print(f"Written: {args.out}")
    return 0


def _tell(message: str, status: int) -> int:
    print(f"sdegen: {message}", file=sys.stderr)
    return status


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} is below {least}" if value < least else f"{value} is over {most}"
            )
        return value

    return number


def _list(item: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The distinct items of a comma-separated list."""

    def items(text: str) -> list[Any]:
        return list(dict.fromkeys(item(part.strip()) for part in text.split(",")))

    return items


def _share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 1")
    return value


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(_number(1), text.split(",")))


def _score_error(text: str) -> Any:
    """`0.05` or `0.05:low` as a size and where, or a narrow dtype."""
    import torch

    from sdegen.bench.robustness import WHERE

    if text in ("bfloat16", "float16"):
        return getattr(torch, text)
    size, _, where = text.partition(":")
    if (where or "all") not in WHERE:
        raise argparse.ArgumentTypeError(f"{where!r} is none of {', '.join(WHERE)}")
    return _share(size), where or "all"


def _method(text: str) -> str:
    from sdegen import demo

    try:
        demo.check([text], [max(demo.BUDGETS)], 2)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give a folder")
    return path
