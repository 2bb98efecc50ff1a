"""The warm-up: a short LoRA training by transformers' Trainer that makes adapters informative and yields Adam's moments.

Moments are kept by parameter name. The released codes keep torch's integer-keyed optimizer state, which assigns moments to the
wrong matrices as soon as the order of parameters differs.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import adapter_parameters
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.lm_head import find_decoder, head_losses
from tagcos_stream.types import Checkpoint, UserError


@dataclass(frozen=True)
class Warmup:
    """The checkpoints of a warm-up, and its course."""

    checkpoints: list[Checkpoint]
    losses: list[float]  # one per optimizer step


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` steps evenly spaced over 1..steps, the last one included: 30 steps, 3 checkpoints -> 10, 20, 30."""
    if count > steps:
        raise UserError(f"{count} checkpoints need at least as many warm-up steps, there are {steps}: lower --checkpoints")
    return [round(steps * (i + 1) / count) for i in range(count)]


def checkpoint_weights(rates: Sequence[float]) -> np.ndarray:
    """Weights (C,) float64 of checkpoints, proportional to the learning rates around them, with sum 1; equal where all are 0."""
    values = np.array(rates, np.float64)
    if len(values) == 0 or (values < 0).any() or not np.isfinite(values).all():
        raise ValueError(f"learning rates {values.tolist()}: need at least one, none negative")
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))


def run_warmup(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    checkpoints: Sequence[int],
    seed: int,
    schedule: str = "linear",
    warmup_steps: int = 0,
    schedule_steps: int | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    token_budget: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Warmup:
    """Train the adapter of `model` (from attach_adapter) for `steps` AdamW steps of `batch_size` examples.

    Returns a checkpoint after each step named in `checkpoints`. Examples are drawn by the Trainer's seeded sampler, in as many
    epochs as it takes. The schedule runs over `schedule_steps` (default: `steps`), so that the published setting, the first 30
    steps of a longer schedule, can be had. A batch is computed in equal micro-batches of at most `token_budget` padded tokens.
    The loss is the Trainer's (mean over all target tokens of a batch), computed at target positions only. No file is left,
    nothing is reported anywhere, and the global random generators are as before.
    """
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    _check_plan(len(encoded), steps, batch_size, checkpoints, schedule_steps)
    device = next(iter(adapter_parameters(model).values())).device
    micro = micro_batch(batch_size, max(len(e) for e in encoded), token_budget)
    recorder = _recorder(model, set(checkpoints), steps, progress)
    with tempfile.TemporaryDirectory() as folder, _random_state_kept():
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=schedule_steps or steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch_size // micro,
            learning_rate=learning_rate,
            lr_scheduler_type=schedule,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            optim="adamw_torch",
            seed=seed,
            data_seed=seed,
            use_cpu=device.type == "cpu",
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            label_names=["labels"],
        )
        assert arguments.device is not None  # finding it counts the GPUs, and would train on all of them, in batches as many
        arguments._n_gpu = min(arguments.n_gpu, 1)
        arguments.__dict__["_setup_devices"] = device  # it takes the first GPU, whichever has the model
        if device.type == "cuda":
            torch.cuda.set_device(device)
        trainer = _trainer(find_decoder(model))(
            model=model, args=arguments, train_dataset=_Examples(encoded), data_collator=_collate, callbacks=[recorder]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            model.train()
            trainer.train()
        finally:
            model.eval()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not np.isfinite(losses).all():
        raise UserError(f"the warm-up's loss became {losses[-1]} at learning_rate {learning_rate:g}: lower the learning rate")
    weights = checkpoint_weights([checkpoint.learning_rate for checkpoint in recorder.checkpoints]).tolist()
    weighted = [replace(checkpoint, weight=weight) for checkpoint, weight in zip(recorder.checkpoints, weights, strict=True)]
    return Warmup(weighted, losses)


def _check_plan(examples: int, steps: int, batch_size: int, checkpoints: Sequence[int], schedule_steps: int | None) -> None:
    if examples == 0:
        raise UserError("no example to warm up on: every example of the sample was rejected, or the pool is empty")
    if steps < 1 or batch_size < 1:
        raise UserError(f"warm-up of {steps} steps of {batch_size} examples: both must be at least 1")
    if not checkpoints or not all(1 <= step <= steps for step in checkpoints):
        raise UserError(f"checkpoints {list(checkpoints)}: name at least one step, each from 1 to {steps} (warm-up steps)")
    if schedule_steps is not None and schedule_steps < steps:
        raise UserError(f"schedule_steps {schedule_steps}: the warm-up has {steps} steps, give as many or more")


def micro_batch(batch_size: int, longest: int, token_budget: int) -> int:
    """The largest divisor of batch_size whose micro-batch keeps within the token budget, at least 1."""
    return max(d for d in range(1, batch_size + 1) if batch_size % d == 0 and (d == 1 or d * longest <= token_budget))


class _Examples(torch.utils.data.Dataset):
    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Encoded:
        return self.encoded[index]


def _collate(batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (B, T), padded on the right; -100 where the loss does not look."""
    shape = (len(batch), max(len(e) for e in batch))
    ids, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = example.input_ids
        mask[row, : len(example)] = 1
        labels[row, : len(example)] = np.where(example.target, example.input_ids, -100)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "labels": torch.from_numpy(labels)}


def _trainer(parts: tuple[Any, Any] | None) -> Any:
    """The Trainer of transformers with its own loss, for models whose head is a linear layer.

    The same mean over the target tokens of a batch, but without logits at other positions, and never of more than some hundred
    targets at once.
    """
    from transformers import Trainer

    class TargetTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            if parts is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            decoder, head = parts
            rows, positions = torch.nonzero(inputs["labels"][:, 1:] != -100, as_tuple=True)
            labels = inputs["labels"][rows, positions + 1]
            # padded on the right under causal attention: no mask is needed
            hidden = decoder(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state[rows, positions]
            count = len(labels) if num_items_in_batch is None else num_items_in_batch
            weights = torch.ones(len(labels), device=hidden.device) / count
            each, gradient = head_losses(head, hidden, labels, weights)
            follows = (hidden * gradient).sum()  # its gradient by `hidden` is the loss's; its value is not
            return follows.float() - follows.detach().float() + each.sum()

    return TargetTrainer


def _recorder(model: Any, wanted: set[int], steps: int, progress: Callable[[int, int], None] | None) -> Any:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.checkpoints: list[Checkpoint] = []
            self.rates: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.rates.append(float(kwargs["lr_scheduler"].get_last_lr()[0]))
            step = state.global_step
            if step in wanted:
                since = self.checkpoints[-1].step if self.checkpoints else 0
                self.checkpoints.append(_snapshot(model, kwargs["optimizer"], step, float(np.mean(self.rates[since:step]))))
            if progress is not None:
                progress(step, steps)
            if step >= steps:
                control.should_training_stop = True

    return Recorder()


def _snapshot(model: Any, optimizer: Any, step: int, rate: float) -> Checkpoint:
    """The adapter and its moments as they are now. Its weight is known at the end only, and 0 until then."""
    states = getattr(optimizer, "optimizer", optimizer).state  # accelerate wraps the optimizer
    parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
    adam_steps = 0
    for name, parameter in adapter_parameters(model).items():
        state = states[parameter]
        adam_steps = int(state["step"])
        for part, tensor in (("weights", parameter.detach()), ("exp_avg", state["exp_avg"]), ("exp_avg_sq", state["exp_avg_sq"])):
            parts[part][name] = tensor.to("cpu", torch.float32, copy=True).contiguous().numpy()
    return Checkpoint(step, rate, 0.0, adam_steps, **parts)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds every global generator; put them back afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
