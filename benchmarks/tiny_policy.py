"""Make a tiny policy that knows a task's format: a word-level tokenizer, a Llama of about one million parameters, and
the host's own supervised trainer (`vpo_plugin.train_sft`) on examples of the task.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from vpo_plugin.rewards import RewardSpec, load_spec

Examples = Callable[[RewardSpec, int, int], Iterator[dict[str, str]]]
"""`examples(spec, num_rows, seed)` yields `num_rows` mappings `{"prompt", "response"}`."""

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
# Words are split at white space; weights in a prompt, such as "0.25,", are split into digits.
WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(r"(?<=^[01]\.)\d|(?<=^[01]\.\d)\d"), behavior="isolated"),
    ]
)


def make_policy(description: str | None, spec_name: str, examples_of: Examples) -> None:
    """Read the command line, write the examples and an untrained policy, and train it on them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished policy")
    parser.add_argument("--work", type=Path, help="folder for the untrained model and the examples")
    parser.add_argument("--spec", default=spec_name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args()

    work = args.work or args.output.with_name(args.output.name + "_work")
    work.mkdir(parents=True, exist_ok=True)
    spec = load_spec(args.spec)
    examples = list(examples_of(spec, args.steps * args.batch_size, args.seed))
    (work / "sft.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    save_untrained_policy(examples, work / "untrained", args.seed)
    longest = max(len(words(row["prompt"] + row["response"])) for row in examples) + 1
    command = [
        *(sys.executable, "-m", "vpo_plugin.train_sft"),
        *("--model.model_name_or_path", str(work / "untrained")),
        *("--ckpt.output_dir", str(args.output), "--ckpt.path", str(work / "checkpoints")),
        *("--data.dataset", str(work / "sft.jsonl")),
        *("--data.input_key", "prompt", "--data.output_key", "response", "--data.input_template", "{}"),
        *("--data.max_len", str(longest)),
        *("--train.batch_size", str(args.batch_size), "--train.micro_batch_size", str(args.batch_size)),
        *("--train.max_epochs", "1", "--train.seed", str(args.seed)),
        *("--adam.lr", str(args.learning_rate), "--lr_scheduler", "cosine_with_min_lr"),
        *("--ds.attn_implementation", "sdpa", "--logger.logging_steps", "100"),
    ]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def words(text: str) -> list[str]:
    """The words of a text, each a token of the policy."""
    return [word for word, _span in WORDS.pre_tokenize_str(text)]


def save_untrained_policy(examples: list[dict[str, str]], folder: Path, seed: int) -> None:
    """A tokenizer with one token per word of the examples, and a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    known = sorted({word for row in examples for word in words(row["prompt"] + row["response"])})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *known])}
    pad, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = WORDS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    ).save_pretrained(folder)

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=vocabulary[pad],
        eos_token_id=vocabulary[eos],
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
