"""Carry reward matrices from the agent executor to the experience hook.

The host turns a list in `extra_logs` into one tensor row and pads rows of different lengths with zeros
(`Experience._merge_item`). So a matrix travels as a flat list after its own shape.
"""

import numpy as np
import torch
from torch import Tensor

INFO_KEY = "reward_matrix"


def pack(matrix: np.ndarray) -> list[float]:
    """Flatten a reward matrix of shape (m, k) to a list that starts with m and k."""
    return [float(matrix.shape[0]), float(matrix.shape[1]), *matrix.ravel().tolist()]


def unpack(row: Tensor) -> Tensor:
    """The reward matrix (m, k) of one packed row, with or without padding."""
    candidates, objectives = int(row[0]), int(row[1])
    return row[2 : 2 + candidates * objectives].view(candidates, objectives)


def stack_groups(matrices: list[Tensor], group_size: int) -> tuple[Tensor, Tensor | None]:
    """Stack matrices (m_i, k_i) in prompt order into (groups, rollouts, candidates, objectives).

    Returns:
        The stacked matrices, and a mask of the values present, or None if all are.
    Raises:
        ValueError: the matrices do not fill whole groups.
    """
    if len(matrices) % group_size:
        raise ValueError(
            f"{len(matrices)} rollouts do not fill groups of {group_size}: every prompt needs all of its rollouts."
        )
    rows = max(matrix.shape[0] for matrix in matrices)
    columns = max(matrix.shape[1] for matrix in matrices)
    stacked = torch.zeros(len(matrices), rows, columns)
    mask = torch.zeros(len(matrices), rows, columns, dtype=torch.bool)
    for i, matrix in enumerate(matrices):
        stacked[i, : matrix.shape[0], : matrix.shape[1]] = matrix
        mask[i, : matrix.shape[0], : matrix.shape[1]] = True
    shape = (-1, group_size, rows, columns)
    return stacked.view(shape), None if mask.all() else mask.view(shape)
