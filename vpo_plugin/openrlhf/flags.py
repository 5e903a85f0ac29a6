"""The plugin's flags on the host's parser."""

import argparse

from vpo_plugin.advantages import advantage_estimator_names
from vpo_plugin.openrlhf import cpu

ESTIMATOR = "algo.advantage.estimator"


def add_flags(parser: argparse.ArgumentParser, on_cpu: bool) -> None:
    """Add the plugin's flags to the host's parser, and defaults that fit a machine without CUDA."""
    # argparse has no public way to read or extend the choices of a flag that is there.
    estimator = next((a for a in parser._actions if a.dest == ESTIMATOR), None)
    if estimator is None or estimator.choices is None:
        raise RuntimeError(f"The host has no --{ESTIMATOR} with choices: this version of the host is not supported.")
    estimator.choices = [*estimator.choices, *advantage_estimator_names()]
    parser.prog = "vpo_plugin.train_ppo_ray"
    parser.usage = "python -m vpo_plugin.train_ppo_ray [flags], where --help lists the flags"
    group = parser.add_argument_group("Vector Policy Optimization (vpo_plugin)")
    group.add_argument(
        "--advantage",
        dest=estimator.dest,
        choices=estimator.choices,
        default=estimator.default,
        help=f"same as --{ESTIMATOR}: an estimator of the plugin or of the host",
    )
    group.add_argument(
        "--vpo.spec",
        metavar="SPEC",
        help="reward specification: a name under reward_specs/ or a path; needed by the plugin's estimators",
    )
    group.add_argument(
        "--vpo.candidates",
        type=int,
        metavar="M",
        help="candidates in one response (default: the specification's, or 1 for an estimator of single candidates)",
    )
    group.add_argument("--vpo.alpha", type=float, default=1.0, help="Dirichlet parameter of the random weightings")
    group.add_argument(
        "--vpo.num_weights",
        type=int,
        help="random weightings for each set reward (default: 1,024, or 3,200 above 8 objectives)",
    )
    group.add_argument(
        "--vpo.k", type=int, help="max_at_k: of how many rollouts the best counts (default: half of a prompt's)"
    )
    group.add_argument("--vpo.seed", type=int, default=0, help="seed of the random weightings")
    group.add_argument(
        "--vpo.on_scorer_error",
        choices=["raise", "zero"],
        default="raise",
        help="a response whose scorer raises: stop the run, or score zeros and count it in the log",
    )
    if on_cpu:
        parser.set_defaults(**cpu.HOST_DEFAULTS)
