"""Explicit Runge-Kutta methods as data: coefficients, embedded errors, dense output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdegen.errors import InvalidArgumentError, strict_keywords

Row = tuple[float, ...]


@strict_keywords
@dataclass(frozen=True, repr=False)
class Tableau:
    """An explicit Runge-Kutta method (Butcher 1964): stage i at `c_i` from `sum_j a_ij k_j`, result `sum_i b_i k_i`.

    error: weights of the embedded error estimate, `b` minus those of a method of lower order, or none; order_error: the
    power of the step with which it falls. second: weights of another estimate, which damps the first (Hairer et al.
    1993, sec. II.10). dense: row i holds the coefficients of theta, theta^2, ... in `b_i(theta)`, the weights of the
    result at the share theta of the step; by default the cubic Hermite polynomial where the slope at the end is known.
    Raises InvalidArgumentError for rows of the wrong length or weights that do not add up.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    error: Row = ()
    order_error: int = 0
    second: Row = ()
    dense: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise InvalidArgumentError(f"tableau {self.name}: row i of a needs i entries, and b one per stage")
        if abs(sum(self.b) - 1) > 1e-12:
            raise InvalidArgumentError(f"tableau {self.name}: b must sum to 1, got {sum(self.b)}")
        for name in ("error", "second"):
            row = vars(self)[name]
            if row and (len(row) != len(self.b) or abs(sum(row)) > 1e-12):
                raise InvalidArgumentError(f"tableau {self.name}: {name} needs one weight per stage, of sum 0")
        if self.dense and max(abs(sum(row) - b) for row, b in zip(self.dense, self.b)) > 1e-9:
            raise InvalidArgumentError(f"tableau {self.name}: the dense weights at 1 must be b")
        if self.error and self.order_error < 1:
            raise InvalidArgumentError(f"tableau {self.name}: order_error must say how the error falls, got 0")

    def __repr__(self) -> str:
        return self.name.upper()

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end, which is the first stage of the next step."""
        return len(self.b) > 1 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]

    def inner(self, theta: Tensor) -> list[Tensor] | None:
        """The weights `b_i(theta)`, each like theta, or None for a method without dense output."""
        rows: Sequence[Row] = self.dense
        if not rows and self.fsal:
            rows = [(0.0, 3 * b, -2 * b) for b in self.b]
            for i, own in ((0, (1.0, -2.0, 1.0)), (-1, (0.0, -1.0, 1.0))):
                rows[i] = tuple(p + q for p, q in zip(rows[i], own))
        if not rows:
            return None
        powers = torch.stack([theta**k for k in range(1, len(rows[0]) + 1)], -1)
        return [(powers * powers.new_tensor(row)).sum(-1) for row in rows]


EULER = Tableau("euler", 1, ((),), (1.0,), dense=((1.0,),))
MIDPOINT = Tableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0), dense=((1.0, -1.0), (0.0, 1.0)))
HEUN = Tableau("heun", 2, ((), (1.0,)), (1 / 2, 1 / 2), dense=((1.0, -1 / 2), (0.0, 1 / 2)))
RK4 = Tableau(
    "rk4",
    4,
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    dense=((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3)),
)
HEUN_EULER = Tableau(
    "heun_euler", 2, ((), (1.0,)), (1 / 2, 1 / 2), (-1 / 2, 1 / 2), 2, dense=((1.0, -1 / 2), (0.0, 1 / 2))
)
"""Heun's method and Euler's inside it, 2(1)."""
BOGACKI_SHAMPINE = Tableau(
    "bogacki_shampine",
    3,
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    3,
)
"""Bogacki & Shampine 1989, 3(2)."""
_B5 = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Tableau(
    "dopri5",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _B5,
    ),
    (*_B5, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    5,
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)
"""Dormand & Prince 1980, 5(4); dense output of order 4 by Shampine 1986."""
# fmt: off
_BT = (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774)
TSIT5 = Tableau(
    "tsit5",
    5,
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.02826905039406838),
        _BT,
    ),
    (*_BT, 0.0),
    (0.001780011052225777, 0.0008164344596567469, -0.007880878010261995, 0.1447110071732629, -0.5823571654525552,
     0.45808210592918697, -1 / 66),
    5,
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
)
"""Tsitouras 2011, 5(4), the sign of its last error weight mended; dense output of order 4 by the same."""
_B8 = (0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
       0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259)
DOPRI8 = Tableau(
    "dopri8",
    8,
    (
        (),
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
        (0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328, -0.015319437748624402,
         0.008273789163814023),
        (0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726, 27.59209969944671, 20.154067550477894,
         -43.48988418106996),
        (0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843, 21.230051448181193, 15.279233632882423,
         -33.28821096898486, -0.020331201708508627),
        (-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295, -8.149787010746927, -18.52006565999696,
         22.739487099350505, 2.4936055526796523, -3.0467644718982196),
        (2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188, 27.94888452941996,
         -2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636),
        _B8,
    ),
    (*_B8, 0.0),
    (0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864,
     -0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294, 0.0),
    8,
    (-0.18980075407240762, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
     -0.4226823213237919, -0.1521609496625161, 0.20136540080403034, 0.02265179219836082, 0.0),
)
"""Dormand & Prince, DOP853, 8(5,3): Hairer, Norsett & Wanner 1993, sec. II.5 and II.10."""
