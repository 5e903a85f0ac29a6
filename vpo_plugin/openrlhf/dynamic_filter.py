"""Dynamic filtering (`--algo.dynamic_filtering_enable`) by the advantages of the run's estimator.

The host drops a prompt whose mean scalar reward is outside a range, and draws another one. This means little if the
estimator does not use the scalar reward. The plugin drops a prompt if all its rollouts get the same advantage, whatever
its rewards. Groups stay whole.
"""

from typing import Any

import torch

from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator
from vpo_plugin.advantages.normalize import NO_SPREAD
from vpo_plugin.openrlhf.experience import load_once, reward_batch
from vpo_plugin.openrlhf.matrices import INFO_KEY, stack_groups, unpack
from vpo_plugin.openrlhf.settings import current_settings


def patch_generator(module: Any) -> None:
    """Wrap the host's `SamplesGenerator`, which compares the mean of a group's `scores` with the range.

    During generation, the scores of a group to keep are a number inside the range, those of a group to drop a number
    above it. Kept groups then get their own scores back from `info["score"]`.
    """
    generator = module.SamplesGenerator
    original_generate = generator._generate_vllm
    original_process = generator._process_response_into_experience

    def _generate_vllm(self: Any, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **more: Any) -> Any:
        self.filtered_group = [] if dynamic_filtering else None
        experiences, *rest = original_generate(self, dataloader_iter, num_prompts, dynamic_filtering, **more)
        for experience in experiences if dynamic_filtering else ():
            experience.scores = experience.info["score"].clone()
        return (experiences, *rest)

    def _process_response_into_experience(self: Any, response: Any, **more: Any) -> Any:
        experience = original_process(self, response, **more)
        group = self.filtered_group
        if group is not None:  # the host processes all responses of a prompt in a row
            group.append(experience)
            if len(group) == self.args.rollout.n_samples_per_prompt:
                low, high = self.args.algo.dynamic_filtering_range
                score = (low + high) / 2 if differ(self.args, group) else high + 1.0
                for one in group:
                    one.scores = torch.tensor([score])
                group.clear()
        return experience

    generator._generate_vllm = _generate_vllm
    generator._process_response_into_experience = _process_response_into_experience


def differ(args: Any, group: list[Any]) -> bool:
    """Whether the run's estimator gives the rollouts of a prompt different advantages; each experience has one row."""
    name = args.algo.advantage.estimator
    if name not in advantage_estimator_names():
        rewards = torch.cat([experience.rewards.float() for experience in group])
        return bool(rewards.max() - rewards.min() >= NO_SPREAD)
    spec = load_once(str(current_settings().spec))
    matrices, mask = stack_groups([unpack(experience.info[INFO_KEY][0]) for experience in group], len(group))
    batch = reward_batch(args, spec, matrices, mask, [group[0].labels[0]], step=0)
    return bool(get_advantage_estimator(name)(batch).abs().max() >= NO_SPREAD)
