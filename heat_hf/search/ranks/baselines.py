"""Settings people use without a search, to compare with (paper, section 3.2, Table 1 and Fig. 12)."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence

from heat_hf.formats import Format, Rank, TensorShape, get_format


def tensorly_rank(format: str, shape: TensorShape, ratio: float) -> Rank:
    """The rank TensorLy takes for a fraction of the parameters, by its `validate_*_rank`; S(Ours)-R(TensorLy) in the paper.

    CP solves for the one rank, Tucker makes every rank the same fraction of its mode, TTM of the mean of its neighbours. Where
    one mode is much longer than the others, most of what TensorLy counts are slices that cannot be used, and with two cores it
    takes far too small a rank; it is then asked for a larger fraction, until what can be used fills the one asked for.

    Raises:
        ValueError: if even the smallest rank has more parameters, or TensorLy has no rule for the format.
    """
    codec = get_format(format)
    if format not in TENSORLY_RULES:
        raise ValueError(f"TensorLy has no rank rule for {format}: it has one for {', '.join(TENSORLY_RULES)}")
    target = ratio * shape.rows * shape.columns
    codec.largest_rank(shape, target)  # raises if nothing fits

    def usable(fraction: float) -> Rank:
        return codec.clip_rank(shape, _validated(TENSORLY_RULES[format], shape, fraction))

    if codec.parameters(shape, usable(ratio)) >= 0.9 * target:
        return usable(ratio)
    start = math.log(ratio)
    return _largest(codec, shape, target, lambda exponent: usable(math.exp(exponent)), start - 10, start + 10)


def _largest(
    codec: Format, shape: TensorShape, max_parameters: float, rank: Callable[[float], Rank], low: float, high: float
) -> Rank:
    """The rank at the largest place between two, of those where ranks grow, that has no more parameters than allowed."""
    for _ in range(40):
        middle = (low + high) / 2
        fits = codec.parameters(shape, rank(middle)) <= max_parameters
        low, high = (middle, high) if fits else (low, middle)
    return rank(low)


def _validated(rule: Callable[[TensorShape, float], Sequence[int]], shape: TensorShape, fraction: float) -> Rank:
    return tuple(max(1, int(rank)) for rank in rule(shape, fraction))


def _cp_rule(shape: TensorShape, fraction: float) -> Sequence[int]:
    from tensorly.cp_tensor import validate_cp_rank

    return [validate_cp_rank(shape.modes, fraction)]


def _tucker_rule(shape: TensorShape, fraction: float) -> Sequence[int]:
    from tensorly.tucker_tensor import validate_tucker_rank

    ranks: Sequence[int] = validate_tucker_rank(shape.modes, fraction)
    return ranks


def _ttm_rule(shape: TensorShape, fraction: float) -> Sequence[int]:
    from tensorly.tt_matrix import validate_tt_matrix_rank

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Determining the tt-rank for the trivial case")
        ranks: Sequence[int] = validate_tt_matrix_rank(shape.modes, fraction)[1:-1]
    return ranks


TENSORLY_RULES = {"low_rank": _cp_rule, "cp": _cp_rule, "tucker": _tucker_rule, "ttm": _ttm_rule}  # low rank is CP of order 2


def random_shares(sizes: Sequence[int], ratio: float, seed: int) -> list[float]:
    """A fraction of its parameters for every matrix, drawn between half and one and a half times `ratio`.

    Scaled so that all matrices together keep `ratio`, as far as none keeps more than 0.95 of its own.
    """
    rng = random.Random(seed)
    drawn = [rng.uniform(0.5, 1.5) for _ in sizes]
    scale = ratio * sum(sizes) / sum(size * share for size, share in zip(sizes, drawn, strict=True))
    return [min(0.95, scale * share) for share in drawn]


def random_rank(codec: Format, shape: TensorShape, max_parameters: float, seed: int) -> Rank:
    """A rank of random proportions, as large as a number of parameters allows; S(Ours)-R(Random) in the paper.

    Raises:
        ValueError: if even the smallest rank has more parameters.
    """
    codec.largest_rank(shape, max_parameters)  # raises if nothing fits
    rng = random.Random(seed)
    proportions = [rng.uniform(0.5, 1.0) * bound for bound in codec.max_rank(shape)]

    def scaled(share: float) -> Rank:
        return codec.clip_rank(shape, tuple(max(1, round(share * value)) for value in proportions))

    # Of the proportions: nothing, and at least every bound.
    return _largest(codec, shape, max_parameters, scaled, 0.0, 2.0)
