"""Scalarization weights: quasi-random draws of `w ~ Dir(alpha, …, alpha)` on the simplex."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaincinv, gammaln
from torch import Tensor


def sample_simplex_weights(
    num_weights: int, objectives: int, *, alpha: float = 1.0, generator: torch.Generator | None = None
) -> Float[Tensor, "weightings objectives"]:
    """Draw `num_weights` scalarization weights from the symmetric Dirichlet with concentration `alpha`.

    Returns:
        float64 on the CPU; each row is non-negative and sums to 1.

    Raises:
        ValueError: `alpha` not positive and finite, or `num_weights` or `objectives` below 1.
    """
    check_dirichlet(alpha, num_weights, objectives)
    return sample_log_gammas(num_weights, objectives, alpha=alpha, seed=draw_seed(generator)).softmax(-1)


def check_dirichlet(alpha: float, num_weights: int, objectives: int) -> None:
    """Raise the ValueError of `sample_simplex_weights` for wrong arguments."""
    if not 0.0 < alpha < float("inf"):
        raise ValueError(f"alpha, the Dirichlet concentration, must be positive and finite, but is {alpha}.")
    if num_weights < 1 or objectives < 1:
        raise ValueError(f"num_weights ({num_weights}) and objectives ({objectives}) must be at least 1.")


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator, torch's global one if it is None."""
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**31, (1,), generator=generator, device=device))


def sample_log_gammas(
    num_weights: int, objectives: int, *, alpha: float, seed: int
) -> Float[Tensor, "weightings objectives"]:
    """Logarithms of independent Gamma(alpha) variates, whose softmax over any subset of the objectives is
    Dirichlet on that subset: float64 on the CPU.

    A scrambled Sobol sequence in k dimensions goes through the inverse of the Gamma distribution function. This keeps
    the sequence more even than spacings of k-1 sorted uniforms, especially for large k.
    """
    sobol = torch.quasirandom.SobolEngine(objectives, scramble=True, seed=seed)
    uniforms = sobol.draw(num_weights, dtype=torch.float64).numpy() + 2.0**-31  # 30 bits, moved off 0
    if alpha == 1.0:
        return torch.from_numpy(np.log(-np.log1p(-uniforms)))
    gammas = gammaincinv(alpha, uniforms)
    lower_tail = (np.log(uniforms) + gammaln(alpha + 1.0)) / alpha  # x^alpha = u·Gamma(alpha + 1) near 0
    return torch.from_numpy(np.where(gammas > 1e-20, np.log(np.maximum(gammas, 1e-300)), lower_tail))
