"""Tiny random models and a tokenizer made here, so that no test downloads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Trainer,
    TrainingArguments,
)

from tagcos_stream.gradients.adapter import adapter_parameters
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.warmup import _collate
from tagcos_stream.types import Checkpoint

VOCABULARY = 300
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every byte a token, and four special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = token_decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(kind: str, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    } | changes
    ends: dict[str, Any] = {"bos_token_id": 3, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "llama":
        return LlamaConfig(**sizes, **ends, num_key_value_heads=2, max_position_embeddings=512)
    if kind == "qwen2":
        return Qwen2Config(**sizes, **ends, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True)
    if kind == "gpt_neox":
        return GPTNeoXConfig(**sizes, **ends, max_position_embeddings=512, attention_dropout=0.1, hidden_dropout=0.1)
    raise ValueError(kind)


KINDS = ("llama", "qwen2", "gpt_neox")


def tiny_model(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
        # Larger than the usual 0.02: attention far from uniform, so that a leak between examples would show.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
    model.config.use_cache = False
    return model.to(dtype).eval()


def random_encoded(lengths: list[int], *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Encoded]:
    """Examples of random ids; about half of the positions are targets, in one to three runs, never the first."""
    rng = np.random.default_rng(seed)
    encoded = []
    for length in lengths:
        target = np.zeros(length, bool)
        for _ in range(rng.integers(1, 4)):
            begin = int(rng.integers(1, length))
            target[begin : begin + int(rng.integers(1, max(2, length // 3)))] = True
        encoded.append(Encoded(rng.integers(4, vocabulary, length).astype(np.int32), target, False))
    return encoded


def exact_norms(model: Any) -> Any:
    """RMS norms in the model's own precision: transformers computes them in float32 even in a float64 model."""

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = forward.__get__(module)
    return model


def random_checkpoint(model: Any, *, seed: int = 0, step: int = 1, weight: float = 1.0) -> Checkpoint:
    """Weights and moments of the sizes that a warm-up leaves, without the warm-up."""
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(parameter.shape) for name, parameter in adapter_parameters(model).items()}

    def draw(scale: float, square: bool = False) -> dict[str, np.ndarray]:
        values = {name: rng.normal(size=shape) * scale for name, shape in shapes.items()}
        return {name: (value**2 if square else value).astype(np.float32) for name, value in values.items()}

    return Checkpoint(step, 1e-4, weight, 3, draw(0.1), draw(1e-3), draw(1e-3, square=True))


def train_checkpoint(model: Any, encoded: list[Encoded], folder: Path) -> Any:
    """The Trainer of a user's own run of three steps, which left `folder`/checkpoint-3 with optimizer.pt."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        optim="adamw_torch",
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=list(encoded), data_collator=_collate)
    trainer.train()
    return trainer
