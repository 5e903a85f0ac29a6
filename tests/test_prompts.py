"""The prompt that the policy reads, in every shape that the host's dataset takes, through the host's own class."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from host import importable_host
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.prompts import patch_prompts
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.prompts import with_instruction
from vpo_plugin.search.policy import as_chat
from vpo_plugin.search.pool import full_prompt

# Like Qwen3's: an empty thought where thinking is off, and nothing where it is on, the default.
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}{% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}
{%- endif %}</{{ m.role }}>{% endfor %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    made = AutoTokenizer.from_pretrained(resolve_policy(TINY, tmp_path_factory.mktemp("policy")))
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def prompts(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the host's dataset makes of a prompt, in a run with these options of the template."""
    with importable_host():
        from openrlhf.datasets import prompts_dataset

        monkeypatch.setattr(prompts_dataset, "preprocess_data", prompts_dataset.preprocess_data)

        def read(prompt: Any, chat: bool = True, processor: Any = tokenizer, **options: Any) -> str:
            run = Settings("maze_small", 3, "raise", tmp_path, on_cpu=True, chat_template_kwargs=options)
            monkeypatch.setenv(VARIABLE, run.dump())
            host = prompts_dataset.preprocess_data
            patch_prompts(prompts_dataset)
            data = SimpleNamespace(input_key="q", label_key=None, apply_chat_template=chat)
            strategy = SimpleNamespace(args=SimpleNamespace(data=data), is_rank_0=lambda: False)
            dataset = prompts_dataset.PromptDataset([{"q": prompt}], processor, strategy)
            prompts_dataset.preprocess_data = host
            return dataset[0][1]

        yield read


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
PREFILL = {"role": "assistant", "content": "<route_1> UP"}
PARTS = [{"type": "image"}, {"type": "text", "text": "Find a way."}]
ASKED = "Write 3 different routes of moves UP DOWN LEFT RIGHT in <route_1> to <route_3> tags."
TASK = f"Find a way.\n{ASKED}\n"
PREFILLED = "<assistant><route_1> UP</assistant>"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Find a way.", f"<user>{TASK}</user>"),
        ("<image>Find a way.", f"<user><|image|>{TASK.rstrip()}</user>"),
        ([SYSTEM, user("Find a way.")], f"<system>Be brief.</system><user>{TASK}</user>"),
        ([user(PARTS)], f"<user><|image|>{TASK}</user>"),
        ([user(PARTS), PREFILL], f"<user><|image|>{TASK}</user>{PREFILLED}"),
        ([user("Find a way."), PREFILL], f"<user>{TASK}</user>{PREFILLED}"),
        ([user("Hello."), PREFILL, user("Find a way.")], f"<user>Hello.</user>{PREFILLED}<user>{TASK}</user>"),
        ([user([{"type": "image", "text": None}])], f"<user><|image|>{ASKED}\n</user>"),
    ],
)
def test_instruction_goes_to_the_last_text_of_the_user(prompts: Any, prompt: Any, expected: str) -> None:
    """Not into an assistant's prefill, and beside images; the dataset's row stays as it is."""
    before = copy.deepcopy(prompt)
    assert prompts(prompt) == f"{expected}<assistant>"
    assert prompt == before


def test_processor_of_a_vision_language_model(prompts: Any, tmp_path: Path) -> None:
    """The instruction stands beside the image, which becomes as many tokens as its pixels fill patches."""
    words = AutoTokenizer.from_pretrained(resolve_policy(TINY, tmp_path / "policy"))
    words.add_tokens(["<|image|>"], special_tokens=True)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False),
        words,
        patch_size=14,
        vision_feature_select_strategy="full",
        image_token="<|image|>",
        chat_template=TEMPLATE,
    )
    text = prompts([user(PARTS), PREFILL], processor=processor)
    assert text == f"<user><|image|>{TASK}</user>{PREFILLED}<assistant>"
    from openrlhf.utils.vlm_utils import process_prompt_with_images

    tokens, pixels, images = process_prompt_with_images(processor, text, [Image.new("RGB", (40, 30))])
    assert tokens.count(processor.image_token_id) == (28 // 14) ** 2
    assert pixels["pixel_values"].shape == (1, 3, 28, 28) and len(images) == 1


def test_options_of_the_template(prompts: Any) -> None:
    """Qwen3 thinks unless it is told not to; without the option, the template's default."""
    assert prompts("Find a way.").endswith("<assistant>")
    assert prompts("Find a way.", enable_thinking=True).endswith("<assistant>")
    assert prompts("Find a way.", enable_thinking=False).endswith("<assistant><think></think>")
    assert prompts("Find a way.", chat=False, enable_thinking=False).startswith("Find a way.")


def test_evaluation_reads_what_training_reads(prompts: Any, tokenizer: Any) -> None:
    spec = load_spec("maze_small")
    for options in ({}, {"enable_thinking": False}):
        (evaluated,) = as_chat([full_prompt(spec, "Find a way.", 3)], tokenizer, options)
        assert evaluated == prompts("Find a way.", **options)


@pytest.mark.parametrize("prompt", [[], [SYSTEM], [PREFILL], None, 3, ["Find a way."]])
def test_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"The (prompt|chat) "):
        with_instruction(prompt, str.upper)
