"""The command `sdegen`. Torch aside (the package needs it), whatever is slow to import is so only when it is used."""

from __future__ import annotations

import argparse
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
exact samples of the mixture is compared with that between two sets of exact samples, the floor. It takes about a minute
on one core, and the same seed gives the same numbers (seconds excepted).

What is written, into the folder --out:
  digits.png         generated digits beside real ones
  trajectories.png   how samples form along the steps
  quality.png        NFE against distance, a line per method
  overview.png       generated digits and NFE against distance in one picture
  results.csv        the numbers: method, budget, nfe, distance, seconds, floor
"""


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (try '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 on failure, 2 on a user's mistake, 130 when interrupted."""
    try:
        args = _parser().parse_args(argv)
        return int(args.command(args))
    except SystemExit as end:  # argparse leaves this way after --help, --version and errors
        return int(end.code or 0)
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
    demo = commands.add_parser(
        "demo",
        help="sample handwritten digits with every method: a table and pictures",
        description=DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.set_defaults(command=_demo)
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
    return parser


def _demo(args: argparse.Namespace) -> int:
    import torch

    from sdegen import demo

    given = {"samples": args.samples, "methods": args.methods, "budgets": args.nfe}
    threads = torch.get_num_threads()
    # The exact score is many small products: more threads gain little, and lose much where the cores are shared.
    torch.set_num_threads(1)
    try:
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        demo.run(args.out, seed=args.seed, quiet=args.quiet, **chosen)
    except OSError as error:
        return _tell(f"error: cannot write to {args.out}: {error.strerror or error}", USAGE)
    finally:
        torch.set_num_threads(threads)
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
