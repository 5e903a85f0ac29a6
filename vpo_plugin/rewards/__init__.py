"""From a response to its reward matrix: the reward specification, the task's Python, candidates and scoring.

It imports neither Ray nor the host. `load_spec(name)` returns a `RewardSpec`, which is data. Functions take it as their
first argument: `formats` asks for candidates and finds them, `task` has rows, labels and known answers, `scoring`
computes reward matrices.
"""

from vpo_plugin.rewards.candidates import parse_candidates
from vpo_plugin.rewards.check import check_spec
from vpo_plugin.rewards.files import SpecError, load_spec
from vpo_plugin.rewards.response import ScoredResponse, score_response
from vpo_plugin.rewards.spec import RewardSpec

__all__ = ["RewardSpec", "ScoredResponse", "SpecError", "check_spec", "load_spec", "parse_candidates", "score_response"]
