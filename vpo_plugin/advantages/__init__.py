"""Advantage estimators on reward matrices: pure torch, no host, no Ray.

A reward matrix holds the rewards of one rollout: `m` candidates by `k` objectives. A `RewardBatch` holds those of a
batch, `(groups, rollouts, candidates, objectives)`. An estimator turns it into advantages `(groups, rollouts)`.
Each estimator is one file; `registry.py` finds it by name.
"""

from vpo_plugin.advantages import (  # noqa: F401  (importing an estimator's module registers it)
    gdpo,
    goal_conditioned,
    grpo,
    max_at_k,
    max_at_k_norm,
    maxrl,
    multi_rlvr,
    random_weighting,
    set_max,
    vpo,
    vpo_at_k,
)
from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.goal_conditioned import goal_weights, write_goal
from vpo_plugin.advantages.normalize import group_z_norm
from vpo_plugin.advantages.registry import (
    AdvantageEstimator,
    advantage_estimator_names,
    get_advantage_estimator,
    parse_method,
    register_advantage_estimator,
)
from vpo_plugin.advantages.set_reward import default_num_weights
from vpo_plugin.advantages.simplex import sample_simplex_weights

__all__ = [
    "AdvantageEstimator",
    "RewardBatch",
    "advantage_estimator_names",
    "default_num_weights",
    "get_advantage_estimator",
    "goal_weights",
    "group_z_norm",
    "parse_method",
    "register_advantage_estimator",
    "sample_simplex_weights",
    "write_goal",
]
