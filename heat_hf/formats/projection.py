"""Projection with regard to calibration data: fit a layer's outputs, or the model's, instead of its weights.

Activation-aware: E‖Wx − W′x‖² = ‖(W − W′)C^{1/2}‖_F² with C = E[xxᵀ]: errors in directions that inputs rarely take cost little.
Loss-aware: with G, the second moment of the model's outputs' gradients at the layer's outputs, ½‖G^{1/2}(W − W′)C^{1/2}‖_F² is
how far the model's outputs move, to second order and with inputs and gradients taken as independent: errors that the model's
outputs do not see cost little, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heat_hf.formats.solver import Solver

DAMPING = 1e-6
OUTPUT_DAMPING = 3e-2  # gradients are sampled, and far from all directions are


def weighted_square(matrix: Tensor, second_moment: Tensor | None, output_moment: Tensor | None = None) -> Tensor:
    """‖G^{1/2} A C^{1/2}‖_F² = tr(G A C Aᵀ), C and G the identity where not given."""
    weighted = matrix if second_moment is None else matrix @ second_moment
    return ((weighted if output_moment is None else output_moment @ weighted) * matrix).sum()


def relative_error(weight: Tensor, approximation: Tensor, second_moment: Tensor | None = None) -> float:
    """‖(W − W′)C^{1/2}‖_F / ‖W C^{1/2}‖_F in float64, C = I if not given (ε of the paper's Eq. 2).

    0 for a matrix of zeros reproduced exactly.
    """
    reference = weight.detach().double()
    moment = None if second_moment is None else second_moment.to(reference)
    lost = weighted_square(reference - approximation.detach().double(), moment).clamp_min(0)
    whole = weighted_square(reference, moment).clamp_min(torch.finfo(torch.float64).tiny)
    return float((lost / whole).sqrt())


def square_roots(moment: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """C^{1/2} and C^{-1/2}, symmetric, N×N.

    A part of their mean, by default a millionth, is added to the eigenvalues: directions that the calibration data never took
    keep a trace of weight, so that W there is kept as well as the cores allow, and the inverse exists.
    """
    roots, eigenvectors = _damped_spectrum(moment, damping)
    return (eigenvectors * roots) @ eigenvectors.T, (eigenvectors / roots) @ eigenvectors.T


def _damped_spectrum(moment: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Square roots of the eigenvalues, damped, and eigenvectors."""
    eigenvalues, eigenvectors = torch.linalg.eigh(moment)
    ridge = damping * eigenvalues.mean().clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return (eigenvalues.clamp_min(0) + ridge).sqrt(), eigenvectors


def damped(moment: Tensor, damping: float) -> Tensor:
    """C with a part of the mean of its diagonal added to it."""
    result = moment.clone()
    result.diagonal().add_(damping * moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny))
    return result


def triangular_root(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """L with L Lᵀ = C, damped as in `square_roots`: as good as C^{1/2} where norms alone matter, and far cheaper."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(damped(moment, damping))
    if not failed:
        return root
    # Summed in float32, a singular moment can have eigenvalues a little below zero, beyond what damping makes up for.
    del root  # as large as what comes next
    roots, eigenvectors = _damped_spectrum(moment, damping)
    return (eigenvectors * roots) @ eigenvectors.T


def triangular_roots(moment: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """L with L Lᵀ = C, damped as in `square_roots`, and L⁻¹: many times faster for thousands of rows."""
    root = triangular_root(moment, damping)
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    if root.triu(1).any():  # it is symmetric, where C is singular beyond what damping makes up for
        return square_roots(moment, damping)
    return root, torch.linalg.solve_triangular(root, eye, upper=False)


def refine(
    reconstruct: Callable[[Sequence[Tensor]], Tensor],
    cores: Sequence[Tensor],
    matrix: Tensor,
    second_moment: Tensor | None,
    solver: Solver,
    output_moment: Tensor | None = None,
) -> list[Tensor]:
    """Lower ‖G^{1/2}(W − W′)C^{1/2}‖_F by L-BFGS over all cores at once, from the cores given.

    One method serves every format, because only the reconstruction differs. The result is never worse than the start.

    Args:
        reconstruct: the M×N matrix W′ of given cores, differentiable.
        cores: the start, float64.
        matrix: W, M×N, float64.
        second_moment: C, N×N; None for the identity.
        solver: `refinement_steps` limits the steps, `tolerance` the relative gain below which they stop.
        output_moment: G, M×M; None for the identity.
    """
    variables = [core.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for core in cores]
    whole = weighted_square(matrix, second_moment, output_moment).clamp_min(torch.finfo(matrix.dtype).tiny)

    def loss() -> Tensor:
        return weighted_square(matrix - reconstruct(variables), second_moment, output_moment) / whole

    optimizer = torch.optim.LBFGS(
        variables,
        max_iter=solver.refinement_steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=solver.tolerance**2,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        start = float(loss().detach())
        optimizer.step(closure)
    with torch.no_grad():
        better = float(loss()) < start  # False also for a step that ended in NaN
    return [variable.detach() for variable in variables] if better else list(cores)
