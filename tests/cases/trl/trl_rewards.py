"""Reward functions as people write them for trl's GRPOTrainer."""

import asyncio


def accuracy_reward(prompts, completions, solution, **kwargs):
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [1.0 if right in text else 0.0 for text, right in zip(texts, solution, strict=True)]


async def echo_reward(completions, prompts, **kwargs):
    await asyncio.sleep(0)
    asked = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(text.split()[0] in prompt) for text, prompt in zip(texts, asked, strict=True)]
