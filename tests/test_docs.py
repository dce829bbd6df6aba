"""The documentation is true: every Python block runs, every link leads somewhere, every `sd.name` exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases import mostly_slow

import sdegen as sd

ROOT = Path(__file__).parent.parent
FILES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()]
PYTHON = {"python", "py", "python3", "pycon"}
LANGUAGES = PYTHON | {"console", "sh", "text", "math", "toml", "bibtex", "mermaid"}
OPTIONAL = ("accelerate", "lightning")
MISSING = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
"""Libraries that a page shows beside ours and this environment does not have: their blocks are left out."""
FENCE = re.compile(r"^([ >]*)(`{3,}|~{3,})[ ]*([\w-]*)")


class Block(NamedTuple):
    """A fenced block: its language, the line of its first line of code, its text."""

    language: str
    line: int
    code: str


def blocks(text: str) -> list[Block]:
    """All fenced blocks, without their indentation. Nothing around a block can hide it."""
    found: list[Block] = []
    opened: tuple[str, str, str, int] | None = None
    body: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, body = (fence[1], fence[2], fence[3].lower(), number + 1), []
        elif fence and fence[2].startswith(opened[1]) and not line[fence.end(2) :].strip():
            found.append(Block(opened[2], opened[3], "\n".join(body) + "\n"))
            opened = None
        else:
            body.append(line.removeprefix(opened[0]))
    if opened is not None:
        raise ValueError(f"the block opened before line {opened[3]} is never closed")
    return found


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    inside, kept = "", []
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence and not inside:
            inside = fence[2]
        elif fence and fence[2].startswith(inside):
            inside = ""
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


class Page:
    """The Python blocks of one file, run in order in one module, one folder and one stream of random numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = [b for b in blocks(path.read_text()) if b.language in PYTHON]
        self.module = types.ModuleType(f"docs_{path.stem}")
        sys.modules[self.module.__name__] = self.module  # dataclasses and pickle look it up

    def run(self) -> None:
        """Run the blocks, in order."""
        outside = torch.get_rng_state()
        torch.set_rng_state(torch.Generator().get_state())
        try:
            for block in self.blocks:
                if any(f"import {name}" in block.code or f"from {name} " in block.code for name in MISSING):
                    continue
                # empty lines in front give tracebacks the line numbers of the file
                code = compile("\n" * (block.line - 1) + block.code, str(self.path), "exec", dont_inherit=True)
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    exec(code, vars(self.module))  # noqa: S102
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in frames if f.filename == str(self.path)), block.line)
            pytest.fail(f"{named(self.path)}:{line} (block at line {block.line}): {type(error).__name__}: {error}")
        finally:
            torch.set_rng_state(outside)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


WITH_CODE = [path for path in FILES if any(b.language in PYTHON for b in blocks(path.read_text()))]


@pytest.mark.parametrize(
    "path", mostly_slow(WITH_CODE, lambda path: path.name not in ("prove.md", "sdes.md", "bench.md"))
)
def test_blocks_run(path, tmp_path, monkeypatch):
    """Warnings are errors here as everywhere in the suite. A page is one test: its blocks go on from one another."""
    monkeypatch.chdir(tmp_path)
    Page(path).run()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_block_says_its_language(path):
    """So that no Python hides in a block that is not run."""
    for block in blocks(path.read_text()):
        assert block.language in LANGUAGES, f"{named(path)}:{block.line - 1}: {block.language!r}"


def test_no_block_can_be_hidden():
    text = "<!-- no-test -->\n```python\na\n```\n\n- item\n\n  ~~~~py title=x\n  b\n  ~~~\n  ~~~~\n```sh\nc\n```\n"
    assert blocks(text) == [("python", 3, "a\n"), ("py", 9, "b\n~~~\n"), ("sh", 13, "c\n")]
    assert prose(text) == "<!-- no-test -->\n\n- item\n"
    with pytest.raises(ValueError, match="never closed"):
        blocks("```python\n")


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.*?) *#*$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_links_and_images_lead_somewhere(path):
    text = re.sub(r"`[^`\n]+`", "", prose(path.read_text()))
    links = re.findall(r"\]\(<?([^)\s>]+)[^)]*\)", text) + re.findall(r"""(?:src|href|srcset)=["']([^"' ]+)""", text)
    links += re.findall(r"^\[[^\]]+\]: *(\S+)", text, re.MULTILINE)
    for link in links:
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        target, _, anchor = link.partition("#")
        there = path if not target else (path.parent / target).resolve()
        assert there.exists(), f"{named(path)}: {link}"
        assert ROOT in (there, *there.parents), f"{named(path)}: {link} leads out of the repository"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{named(path)}: {link}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_names_exist(path):
    """Every `sd.name.name` in code, block or backticks, starts from a public name and exists."""
    text = path.read_text()
    code = [b.code for b in blocks(text) if b.language != "math"] + re.findall(r"`+([^`\n]+)`+", prose(text))
    for name in {n for part in code for n in re.findall(r"(?<![\w.])sd\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", part)}:
        value = sd
        for i, attribute in enumerate(name.split(".")):
            assert i or attribute in (*sd.__all__, "__version__"), f"{named(path)}: sd.{name} is not public"
            assert hasattr(value, attribute), f"{named(path)}: sd.{name} does not exist"
            value = getattr(value, attribute)


def networks_people_have():
    """What README's table calls by name: stand-ins that are called as their libraries call them."""

    class Net(torch.nn.Linear):
        def forward(self, x, t):
            return 0.5 * super().forward(x) * (1 + 0 * t[:, None])

    class Denoiser(Net):
        sigma_min, sigma_max, sigma_data = 0.002, 80.0, 0.5

        def round_sigma(self, sigma):
            return sigma

    class Raw(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            return (0.5 * sample + 0 * encoder_hidden_states.mean(1),)

    betas = torch.linspace(1e-4, 0.02, 1000)
    kind = types.SimpleNamespace
    net = Denoiser(2, 2).eval()
    diffusion = kind(
        model=net,
        betas=betas,
        objective="pred_noise",
        model_mean_type=kind(name="EPSILON"),
        model_var_type=kind(name="FIXED_LARGE"),
    )
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(clip_sample=False)

    class Estimator(Net):
        condition_shape, input_shape, t_min, t_max = (3,), (2,), 1e-3, 1.0
        mean_0, std_0 = torch.zeros(1, 2), torch.ones(1, 2)

        def score(self, input, condition, time):
            return -input

        def forward(self, input, condition, time):
            return -input

        def mean_t_fn(self, times):
            return torch.cos(times)[..., None]

        def std_fn(self, times):
            return torch.sin(times)[..., None]

    class Posterior(torch.nn.Module):
        def schedule(self, t):
            return torch.cos(1.57 * t)[..., None], 1e-3 + torch.sin(1.57 * t)[..., None]

        def forward(self, x, t):
            return kind(mean=0.5 * x)

    return {
        "sd": sd,
        "net": net,
        "wide": lambda x, t: torch.cat([x, 0 * x], 1),
        "energy": lambda x, t: (x**2).sum(1) / 2,
        "betas": betas,
        "denoiser": net,
        "diffusion": diffusion,
        "estimator": Estimator(2, 2).eval(),
        "x": torch.zeros(3),
        "pipe": kind(unet=Raw().eval(), scheduler=scheduler),
        "words": torch.zeros(3, 5, 2),
    }, {"azula": {"denoiser": Posterior().eval()}}


def rows_of_networks():
    """The lines of code in README's table of networks."""
    text = (ROOT / "README.md").read_text()
    rows = text[text.index("| your network | one line |") :].split("\n\n")[0].splitlines()[2:]
    return [line for row in rows for line in re.findall(r"`(sd\.(?!ddpm)[^`]*)`", row)]


@pytest.mark.parametrize("line", rows_of_networks())
def test_every_line_for_a_network_makes_a_model(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known, others = networks_people_have()
    known |= next((own for name, own in others.items() if f".{name}(" in line), {})
    sd.ScoreModel(sd.EDM(), known["net"], "data").save("model.safetensors")
    model = eval(line, known)  # noqa: S307 - the documentation's own lines
    assert sd.sample(model, (3, 2), nfe=4, seed=0).isfinite().all()
    assert sd.ScoreModel is type(model)
