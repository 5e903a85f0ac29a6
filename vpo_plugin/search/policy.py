"""Policies that write responses: a vLLM engine in this process, or an OpenAI-compatible endpoint.

Both take a batch of requests and return the responses to each. An engine is seeded before each batch, so the same
requests and seed give the same responses on the same machine with the same versions. Endpoint samples differ each time.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from vpo_plugin.locks import temporary_home
from vpo_plugin.models import check_policy
from vpo_plugin.openrlhf import cpu
from vpo_plugin.rewards.candidates import opened_thought
from vpo_plugin.rewards.prompts import Prompt, images

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model")


@dataclass(frozen=True)
class Request:
    """One prompt to answer."""

    prompt: Prompt
    """The prompt with its instruction, a text or a chat, before any chat template."""
    samples: int = 1
    """Number of responses to sample."""
    start: str = ""
    """The beginning of the response; the policy writes the rest."""


@dataclass(frozen=True)
class Response:
    """One response to a request."""

    text: str
    """Begins with the request's `start`."""
    tokens: int
    """Tokens that the policy wrote."""


class Policy(Protocol):
    """A source of responses."""

    def generate(self, requests: Sequence[Request], seed: int) -> list[list[Response]]:
        """The responses to each request, `samples` per request."""
        ...


class EndpointError(RuntimeError):
    """An endpoint did not answer correctly; the message says what to do."""


# ------------------------------------------------------------------------------------------------ in this process


class SamplingSeed:
    """Extension of vLLM's workers that seeds the generators that the samplers use.

    Those are PyTorch's, and on a GPU NumPy's in vLLM 0.31 (`v1/worker/gpu/sample/states.py`, a seed for each request).
    Seeds per request would do the same, but vLLM 0.29's CPU sampler refuses batches of them.
    """

    def seed_sampling(self, seed: int) -> None:
        import numpy
        import torch

        torch.manual_seed(seed)
        numpy.random.seed(seed)


class Engine:
    """A vLLM engine in this process, on CUDA or CPU, bfloat16.

    Args:
        longest: tokens of the longest prompt.
        more: tokens by which later prompts may be longer, as far as the model has room.
        chat_template_kwargs: options of the chat template.

    Raises:
        OSError: the model does not exist.
        ValueError: the longest prompt leaves no room for a response.
    """

    def __init__(
        self,
        model: str,
        *,
        max_new_tokens: int,
        temperature: float,
        longest: int,
        more: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        prepare_environment()
        temporary_home()  # for vLLM's sockets, which it does not remove
        import torch
        from transformers import AutoConfig, AutoTokenizer
        from vllm import LLM, SamplingParams

        most = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
        needed = longest + max_new_tokens
        self.room = needed + more if most is None else min(needed + more, most)
        self._check_room(needed)
        self.max_new_tokens = max_new_tokens
        self.chat_template_kwargs = chat_template_kwargs or {}

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.params = SamplingParams(temperature=temperature, max_tokens=max_new_tokens, skip_special_tokens=False)
        self.llm = LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=self.room,
            enforce_eager=not torch.cuda.is_available(),
            worker_extension_cls=f"{SamplingSeed.__module__}.{SamplingSeed.__qualname__}",
            use_tqdm_on_load=False,
            **({} if torch.cuda.is_available() else {"block_size": cpu.KV_BLOCK}),
        )

    def generate(self, requests: Sequence[Request], seed: int) -> list[list[Response]]:
        from vllm import TokensPrompt

        texts = as_chat([request.prompt for request in requests], self.tokenizer, self.chat_template_kwargs)
        starts = [opened_thought(text) + request.start for text, request in zip(texts, requests, strict=True)]
        texts = [text + request.start for text, request in zip(texts, requests, strict=True)]
        tokens = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._check_room(max(map(len, tokens)) + self.max_new_tokens)
        params = [self.params.clone() for _ in requests]
        for param, request in zip(params, requests, strict=True):
            param.n = request.samples
        self.llm.reset_prefix_cache()  # cached prefixes change the scheduling, and so the samples
        self.llm.collective_rpc("seed_sampling", args=(seed,))
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in tokens], params, use_tqdm=False)
        return [
            [Response(start + sample.text, len(sample.token_ids)) for sample in output.outputs]
            for start, output in zip(starts, outputs, strict=True)
        ]

    def _check_room(self, tokens: int) -> None:
        if tokens > self.room:
            raise ValueError(
                f"A prompt and its response take up to {tokens} tokens, but the model has room for {self.room}: ask "
                "for fewer or shorter candidates (--max_new_tokens), or leave out long prompts."
            )


def prepare_environment() -> None:
    """Set variables that vLLM reads at import and torch at its first warning, unless the user has set them."""
    import torch

    settings = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not torch.cuda.is_available():
        settings |= cpu.environment()
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def most_tokens(texts: Sequence[str], tokenizer: Any) -> int:
    """Tokens of the longest text, without those that a tokenizer adds."""
    return max(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def as_chat(prompts: Sequence[Prompt], tokenizer: Any, options: Mapping[str, Any] | None = None) -> list[str]:
    """The policy's input: the prompts in its chat template, or plain texts if its tokenizer has no template.

    Args:
        options: options for the template, such as `enable_thinking`.

    Raises ValueError for a chat without a chat template, and for one with images.
    """
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            raise ValueError(f"Prompt {number} is a chat, but the model has no chat template.")
        if images(prompt):
            raise ValueError(f"Prompt {number} has parts that are not text: only an endpoint (--url) can take it.")
    if not tokenizer.chat_template:
        return [prompt for prompt in prompts if isinstance(prompt, str)]
    told = {"tokenize": False, "add_generation_prompt": True, **(options or {})}
    return [tokenizer.apply_chat_template(messages(prompt), **told) for prompt in prompts]


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt as a chat."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


# ------------------------------------------------------------------------------------------------ endpoints


class Endpoint:
    """An OpenAI-compatible endpoint, which gets many requests at a time.

    Requests that were refused, timed out, or answered with 408, 409, 429 or 5xx are repeated after growing waits (or
    those of `Retry-After`), up to `tries` attempts in all.

    Args:
        url: base address as for the `openai` client: http://host:port/v1.
        api: `chat`, or `completions` for policies without a chat template.
        timeout: seconds for one request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_new_tokens: int,
        temperature: float,
        api: Literal["chat", "completions"] = "chat",
        at_once: int = 32,
        timeout: float = 600.0,
        tries: int = 8,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        import openai

        self.url, self.model, self.api, self.at_once = url, model, api, at_once
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.sampling: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        self.client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=timeout,
            max_retries=tries - 1,
        )

    def generate(self, requests: Sequence[Request], seed: int) -> list[list[Response]]:
        """Does not send `seed`: endpoints treat seeds differently, and many samples with one seed would be the same."""
        with ThreadPoolExecutor(self.at_once) as threads:
            futures = [[threads.submit(self._ask, request) for _ in range(request.samples)] for request in requests]
            try:
                return [[future.result() for future in row] for row in futures]
            finally:
                threads.shutdown(cancel_futures=True)

    def _ask(self, request: Request) -> Response:
        import openai

        try:
            reply = self._chat(request) if self.api == "chat" else self._complete(request)
            text = (reply.choices[0].message.content if self.api == "chat" else reply.choices[0].text) or ""
            return Response(request.start + storable(text), reply.usage.completion_tokens)
        except openai.OpenAIError as error:
            raise EndpointError(
                f"{self.model} at {self.url} failed to answer ({type(error).__name__}: {str(error)[:300]}). Earlier "
                "samples are kept: when the endpoint works, run the same command again to resume."
            ) from error
        except (AttributeError, IndexError, TypeError) as error:
            raise EndpointError(
                f"{self.model} at {self.url} does not answer like OpenAI's interface, with choices and usage "
                f"({type(error).__name__}: {error})."
            ) from error

    def _chat(self, request: Request) -> Any:
        asked = [*messages(request.prompt)]
        body: dict[str, Any] = {}  # fields of vLLM's server beside OpenAI's
        if self.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        if request.start:  # continue a response
            asked.append({"role": "assistant", "content": request.start})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        more: dict[str, Any] = {"extra_body": body} if body else {}
        return self.client.chat.completions.create(
            model=self.model,
            messages=asked,  # type: ignore[arg-type]
            **self.sampling,
            **more,
        )

    def _complete(self, request: Request) -> Any:
        if not isinstance(request.prompt, str):
            raise ValueError("A prompt is a chat: use the endpoint's chat interface (--api chat).")
        return self.client.completions.create(model=self.model, prompt=request.prompt + request.start, **self.sampling)


def storable(text: str) -> str:
    """Make a text that UTF-8 can encode: lone surrogates become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ------------------------------------------------------------------------------------------------ identity


def fingerprint(model: str) -> str:
    """A policy's fingerprint: a hash of a folder's weights, configuration and tokenizer, or the commit of a hub model.

    Raises:
        FileNotFoundError: the folder has no model.
        OSError: the hub cannot be reached or has no such model.
    """
    check_policy(model)
    folder = Path(model)
    if folder.is_dir():
        digest = hashlib.sha256()
        for file in sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)}):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while part := content.read(1 << 20):
                    digest.update(part)
        return digest.hexdigest()[:16]
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(model)._commit_hash)
