from __future__ import annotations
from heat_hf.formats.base import Factorization, match_variance, require_finite, balanced, truncated_svd
def decompose(codec, weight, shape, rank, solver=None, second_moment=None, output_moment=None):
    return codec.decompose(weight, shape, rank, solver, second_moment, output_moment)
def rank_errors(codec, weight, shape, ranks, solver=None):
    return codec.rank_errors(weight, shape, ranks, solver)
def approximation_errors(codec, weight, cores, shape, second_moment=None):
    return codec.errors(weight, cores, shape, second_moment)
