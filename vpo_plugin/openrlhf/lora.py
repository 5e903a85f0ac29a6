"""LoRA (`--ds.lora.rank`): merge the adapter into the weights of the engines and of the saved model.

The host would send the engines the parameters of PEFT's wrapped model under names that no engine knows. The wrapped
model's weights stay unchanged, because adding and removing an adapter would round them at each step.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PREFIX = "base_model.model."


class MergedWeight:
    """A base model's weight merged with its adapter, with the parameter attributes that the host's weight sync reads.
    Merged on access, so that only one merged weight at a time takes memory.
    """

    def __init__(self, parameter: Tensor, layer: Any) -> None:
        self.parameter, self.layer = parameter, layer
        self.shape, self.dtype, self.requires_grad = parameter.shape, parameter.dtype, True

    @property
    def data(self) -> Tensor:
        with torch.no_grad():
            merged = self.parameter.data.float()
            for adapter in self.layer.active_adapters:
                merged = merged + self.layer.get_delta_weight(adapter).float()
            return merged.to(self.dtype)


def has_adapter(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def merged_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """The parameters of a PEFT model under the names of its base model, adapters merged in."""
    from peft.tuners.lora import LoraLayer

    for name, parameter in type(model).named_parameters(model):
        if ".lora_" in name:
            continue
        path, found, leaf = name.rpartition(".base_layer.")
        base_name = (f"{path}.{leaf}" if found else name).removeprefix(PREFIX)
        layer = model.get_submodule(path) if found else None
        if leaf == "weight" and isinstance(layer, LoraLayer):
            yield base_name, MergedWeight(parameter, layer)
        else:
            yield base_name, parameter


def patch_actor(module: Any) -> None:
    """Wrap `broadcast_to_vllm` of the host's `ActorPPOTrainer`, which sends the model's `named_parameters`."""
    original = module.ActorPPOTrainer.broadcast_to_vllm

    def broadcast_to_vllm(self: Any) -> None:
        model = self.actor.model.module
        if not has_adapter(model):
            original(self)
            return
        model.named_parameters = lambda: merged_parameters(model)
        try:
            original(self)
        finally:
            del model.named_parameters

    module.ActorPPOTrainer.broadcast_to_vllm = broadcast_to_vllm


def patch_strategy(module: Any) -> None:
    """Wrap `save_model` of the host's `DeepspeedStrategy`: save its adapter to `adapter/`, and merged weights."""
    original = module.DeepspeedStrategy.save_model

    def save_model(self: Any, model: Any, tokenizer: Any, output_dir: str, **more: Any) -> None:
        peft_model = self._unwrap_model(model)
        if not has_adapter(peft_model):
            original(self, model, tokenizer, output_dir, **more)
            return
        original(self, model, tokenizer, os.path.join(output_dir, "adapter"), **more)
        if self.is_rank_0():
            weights = {name: weight.data for name, weight in merged_parameters(peft_model)}
            peft_model.get_base_model().save_pretrained(output_dir, state_dict=weights, **more)
            tokenizer.save_pretrained(output_dir)
        module.torch_dist_barrier_and_cuda_sync()

    module.DeepspeedStrategy.save_model = save_model
