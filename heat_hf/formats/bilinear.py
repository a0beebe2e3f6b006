"""Bilinear algorithms for the product of two t×t tiles: r products of linear forms, exact, or as near as r products come.

Y = X·W of tiles is one fixed tensor of order 3: a form of X, times a form of W, for every element of Y. An algorithm of r
products is a sum of r rank-one tensors, so its error for tiles of independent elements is the distance between the two tensors,
and alternating least squares lowers it. Strassen's algorithm is such a sum: 7 products for t = 2, and 49, its product with
itself, for t = 4. For fewer products than that, the best known starts are made of it, too, see `cut`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from heat_hf.formats.strassen_tile import STARTS, TILES

Factors: TypeAlias = tuple[Tensor, Tensor, Tensor]
LEARNED = ("strassen", "als")  # that least squares are the way of
EXACT = 1e-12  # relative squared error
SWEEPS, FEW_SWEEPS, RANDOM_STARTS = 800, 60, 4
RIDGE = 1e-3  # of the first sweep; it falls to nothing
# On the squared norms of forms: without it, the best ones have elements of hundreds that cancel. A layer that is to be trained
# needs more of it: where products cancel, what a small step changes is many times as large.
PENALTY, TRAINABLE = 3e-4, 2e-2
TOLERANCE = 1e-10  # of the squared error, over ten sweeps
NEIGHBOURS = 3  # larger algorithms that are cut to a rank

# Strassen's products of the elements 11, 12, 21, 22: forms of X, forms of W, and where each product goes in Y.
_STRASSEN = (
    ((1, 0, 0, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (-1, 0, 1, 0), (0, 1, 0, -1)),
    ((1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, -1), (-1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1)),
    ((1, 0, 0, 1), (0, 0, 1, -1), (0, 1, 0, 1), (1, 0, 1, 0), (-1, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0)),
)


@dataclass(frozen=True)
class Algorithm:
    """Y = X·W of t×t tiles as r products, vec(Y) = D·(E_X·vec(X) ⊙ E_W·vec(W)), exact or not; rows of tiles come first.

    Attributes:
        encode_x: E_X, r×t².
        encode_w: E_W, r×t².
        decode: D, t²×r.
    """

    encode_x: Tensor
    encode_w: Tensor
    decode: Tensor

    @classmethod
    def of(cls, factors: Factors) -> Algorithm:
        """Of three factors of the tensor, t²×r each."""
        x, w, y = factors
        return cls(x.T.contiguous(), w.T.contiguous(), y.contiguous())

    @property
    def factors(self) -> Factors:
        """The three, t²×r each."""
        return self.encode_x.T, self.encode_w.T, self.decode

    @property
    def products(self) -> int:
        """Their number r."""
        return len(self.encode_x)

    @property
    def tile(self) -> int:
        """Their extent t."""
        return math.isqrt(len(self.decode))

    def error(self, x_moment: Tensor | None = None, w_moment: Tensor | None = None) -> float:
        """E‖XW − Y‖_F² / E‖XW‖_F² of tiles that are independent of each other.

        Args:
            x_moment: E[vec(X)vec(X)ᵀ], t²×t²; None for independent elements.
            w_moment: the same of W.
        """
        target = product_tensor(self.tile).to(self.decode)
        lost = target - torch.einsum("ar,br,cr->abc", *self.factors)
        return _norm(lost, x_moment, w_moment) / _norm(target, x_moment, w_moment)


def product_tensor(tile: int) -> Tensor:
    """The matrix product itself, t²×t²×t² in float64: elements of X, of W, and of Y."""
    eye = torch.eye(tile, dtype=torch.float64)
    return torch.einsum("ps,kl,ij->pklisj", eye, eye, eye).reshape((tile**2,) * 3)


def standard(tile: int) -> Algorithm:
    """The t³ products of the definition."""
    eye = torch.eye(tile**2, dtype=torch.float64).reshape(tile, tile, -1)
    places = list(product(range(tile), repeat=3))
    forms = ([eye[p, k] for p, k, _ in places], [eye[k, j] for _, k, j in places], [eye[p, j] for p, _, j in places])
    x, w, y = (torch.stack(rows) for rows in forms)
    return Algorithm(x, w, y.T.contiguous())


def strassen(tile: int = 2) -> Algorithm:
    """Strassen's 7 products for t = 2, and their product with themselves, 49, for t = 4.

    Raises:
        ValueError: for another t.
    """
    if tile not in (2, 4):
        raise ValueError(f"Strassen's algorithm is for tiles of 2 or 4, got {tile}")
    x, w, y = (torch.tensor(rows, dtype=torch.float64) for rows in _STRASSEN)
    own = Algorithm(x, w, y.T.contiguous())
    return own if tile == 2 else nested(own, own)


def nested(outer: Algorithm, inner: Algorithm) -> Algorithm:
    """An algorithm on tiles of tiles: r·r′ products for tiles of t·t′. If both are exact, it is."""
    factors = []
    for left, right in zip(outer.factors, inner.factors, strict=True):
        a, b = left.reshape(outer.tile, outer.tile, -1), right.reshape(inner.tile, inner.tile, -1)
        factors.append(torch.einsum("pkr,qls->pqklrs", a, b).reshape((outer.tile * inner.tile) ** 2, -1))
    return Algorithm.of(tuple(factors))  # type: ignore[arg-type]


def hadamard(tile: int, products: int, seed: int = 0) -> Algorithm:
    """Some of the characters of the group ℤ₂^3log₂t, in whose algebra the product of tiles is an element-wise one.

    X lies at the elements (p, k, 0), W at (0, k, j), Y at (p, 0, j); the t³ characters are orthogonal to each other, so any r
    of them have the error 1 − r/t³, as any r products of the definition have.

    Raises:
        ValueError: if t is no power of 2.
    """
    if tile & (tile - 1):
        raise ValueError(f"the characters of 'hadamard' need tiles of 2 or 4, got {tile}")
    walsh = torch.ones(1, 1, dtype=torch.float64)
    while len(walsh) < tile:
        walsh = torch.cat((torch.cat((walsh, walsh), 1), torch.cat((walsh, -walsh), 1)))
    places = torch.randperm(tile**3, generator=torch.Generator().manual_seed(seed))[:products]
    a, b, c = (walsh[places // tile**power % tile] for power in (2, 1, 0))
    x, w, y = (torch.einsum("rp,rk->rpk", left, right).flatten(1) for left, right in ((a, b), (b, c), (a, c)))
    return Algorithm(x, w, y.T.contiguous() / tile**3)


def random(tile: int, products: int, seed: int = 0) -> Algorithm:
    """Independent normal elements, scaled so that tiles of independent elements get outputs of the right variance."""
    generator = torch.Generator().manual_seed(seed)
    x, w, y = (torch.randn(tile**2, products, generator=generator, dtype=torch.float64) for _ in range(3))
    return Algorithm.of((x / tile, w / tile, y * (tile / products) ** 0.5))


def improved(
    start: Algorithm,
    sweeps: int = SWEEPS,
    x_moment: Tensor | None = None,
    w_moment: Tensor | None = None,
    penalty: float = PENALTY,
) -> Algorithm:
    """Alternating least squares from an algorithm on, for the error that `Algorithm.error` gives with the same moments.

    Each factor in turn is the least-squares solution for the other two, with a ridge towards its last value that falls to
    nothing, and a penalty on its norm. The result is never worse than the start, by error and penalty together.
    """
    roots = [None if moment is None else _roots(moment) for moment in (x_moment, w_moment)]
    target = product_tensor(start.tile)
    factors = [factor.double() for factor in start.factors]
    for place, root in enumerate(roots):
        if root is not None:
            target = torch.tensordot(target, root[0], dims=([place], [0])).movedim(-1, place)
            factors[place] = root[0] @ factors[place]
    factors = _descend(target, factors, sweeps, penalty)
    for place, root in enumerate(roots):
        if root is not None:
            factors[place] = root[1] @ factors[place]
    return Algorithm.of(tuple(factors))  # type: ignore[arg-type]


def cut(algorithm: Algorithm, products: int) -> Algorithm:
    """Fewer products: the smallest goes, a few sweeps make up for it, then the next."""
    while algorithm.products > products:
        sizes = torch.stack([factor.norm(dim=0) for factor in algorithm.factors]).prod(0)
        kept = torch.ones(len(sizes), dtype=torch.bool)
        kept[sizes.argmin()] = False
        algorithm = improved(Algorithm.of(tuple(f[:, kept] for f in algorithm.factors)), FEW_SWEEPS)  # type: ignore[arg-type]
    return algorithm


@lru_cache(maxsize=256)
def algorithm(tile: int, products: int, start: str = "strassen", seed: int = 0) -> Algorithm:
    """An algorithm of r products for tiles of t, found once.

    Args:
        tile: t, one of `TILES`.
        products: r, from 1 to t³.
        start: "strassen": exact from Strassen's number of products on, and for t³ the definition; below, what is left of
            larger algorithms made of it, by least squares. "als": least squares from random starts. "hadamard": some
            characters of a group. "random": normal numbers.
        seed: of the random ones.

    Raises:
        ValueError: for another start, tile or number.
    """
    if tile not in TILES or not 1 <= products <= tile**3:
        raise ValueError(f"a tile of {', '.join(map(str, TILES))} has from 1 to tile³ products, got {tile} and {products}")
    if start == "strassen":
        return _of_strassen(tile, products)
    if start == "als":
        starts = (improved(random(tile, products, seed + number)) for number in range(RANDOM_STARTS))
        return min(starts, key=Algorithm.error)
    if start not in STARTS:
        raise ValueError(f"the start must be one of {', '.join(STARTS)}, got {start!r}")
    return (hadamard if start == "hadamard" else random)(tile, products, seed)


def _of_strassen(tile: int, products: int) -> Algorithm:
    exact = standard(tile) if products == tile**3 or tile == 3 else strassen(tile)
    if products >= exact.products:
        return _filled(exact, products)
    larger = [exact]
    if tile == 4:
        sizes = sorted({a * b: (a, b) for a, b in product(range(4, 8), repeat=2) if a * b >= products and a >= b}.items())
        larger = [nested(algorithm(2, a), algorithm(2, b)) for _, (a, b) in sizes[:NEIGHBOURS]]
    return min((improved(cut(one, products)) for one in larger), key=Algorithm.error)


def _filled(exact: Algorithm, products: int) -> Algorithm:
    """With products more whose form of W is zero: training can find a use for them."""
    more = products - exact.products
    if not more:
        return exact
    free = random(exact.tile, more)
    factors = zip(exact.factors, (free.encode_x.T, torch.zeros_like(free.encode_w.T), free.decode), strict=True)
    return Algorithm.of(tuple(torch.cat(pair, 1) for pair in factors))  # type: ignore[arg-type]


def _descend(target: Tensor, factors: list[Tensor], sweeps: int, penalty: float) -> list[Tensor]:
    unfolded = [target.movedim(place, 0).flatten(1) for place in range(3)]
    whole, eye = float(target.square().sum()), torch.eye(factors[0].shape[1], dtype=target.dtype)
    scale = whole / target.shape[0] ** 2
    factors = _evened(factors)
    best, last, ridge = factors, _lost(unfolded[0], factors, penalty), RIDGE * scale
    for sweep in range(sweeps):
        for place in range(3):
            first, second = (factors[other] for other in range(3) if other != place)
            gram = (first.T @ first) * (second.T @ second)
            pairs = (first[:, None] * second[None]).flatten(0, 1)
            right = unfolded[place] @ pairs + ridge * factors[place]
            factors = [*factors]
            factors[place] = torch.linalg.solve(gram + (ridge + penalty) * eye, right.T).T
        ridge *= 0.99
        if sweep % 10 == 9 or sweep == sweeps - 1:
            factors = _evened(factors)
            lost = _lost(unfolded[0], factors, penalty)
            if lost < last:
                best = factors
            if not last - lost > TOLERANCE * whole and sweep > sweeps // 4:
                break
            last = min(lost, last)
    return best


def _lost(unfolded: Tensor, factors: list[Tensor], penalty: float) -> float:
    """Squared error and penalty, of factors of equal norms."""
    products = (factors[1][:, None] * factors[2][None]).flatten(0, 1)
    return float((unfolded - factors[0] @ products.T).square().sum() + penalty * sum(f.square().sum() for f in factors))


def _evened(factors: list[Tensor]) -> list[Tensor]:
    """The same rank-one tensors, with forms of equal norm."""
    norms = torch.stack([factor.norm(dim=0).clamp_min(1e-30) for factor in factors])
    mean = norms.prod(0) ** (1 / 3)
    return [factor / norm * mean for factor, norm in zip(factors, norms, strict=True)]


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of a moment, and its inverse, of mean square 1; directions without weight keep a trace."""
    from heat_hf.formats.projection import square_roots

    moment = moment.double().cpu()
    return square_roots(moment / moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny), 1e-4)


def _norm(tensor: Tensor, x_moment: Tensor | None, w_moment: Tensor | None) -> float:
    """‖·‖² with the first two modes weighted."""
    weighted = tensor
    for place, moment in enumerate((x_moment, w_moment)):
        if moment is not None:
            weighted = torch.tensordot(weighted, moment.to(tensor), dims=([place], [0])).movedim(-1, place)
    return float((weighted * tensor).sum())
