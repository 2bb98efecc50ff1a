"""Train on a weighted selection: TRL's SFTTrainer with a weight per example. Needs the extra `train`."""

from __future__ import annotations

from typing import Any

from tagcos_stream.types import UserError


def weighted_sft_trainer(model: Any, train_dataset: Any, args: Any, **options: Any) -> Any:
    """Make an SFTTrainer whose loss is the mean over a batch of weight times loss of each example.

    The loss of an example is the mean cross-entropy over its target tokens, as in the features by which it was chosen. (TRL
    averages over all tokens of a batch, so that long answers count more.) With weights of mean 1 the loss keeps its scale.

    Parameters
    ----------
    model
        A model or its name, as SFTTrainer takes it.
    train_dataset
        A `datasets.Dataset` with input_ids, labels and weight: an export of the format `trl`.
    args
        An SFTConfig, with packing and padding_free off (they mix examples in one row).
    options
        Passed on to SFTTrainer (processing_class, peft_config, eval_dataset, callbacks, ...).

    Returns
    -------
    trl.SFTTrainer
        Not yet started. `args.remove_unused_columns` is set to False, so that the weights reach the collator.

    Raises
    ------
    UserError
        TRL is not installed, the dataset lacks a column, or `args` ask for packing.
    """
    try:
        import torch
        from trl import SFTTrainer
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    except ImportError as error:
        raise UserError(f"training needs the package trl ({error}): pip install 'tagcos-stream[train]'") from error
    lacking = [name for name in ("input_ids", "labels", "weight") if name not in train_dataset.column_names]
    if lacking:
        raise UserError(f"the dataset has no column {', '.join(lacking)}: make it with `tagcos export --format trl`")
    if args.packing or args.padding_free:
        raise UserError("packing and padding_free put several examples in one row, which has one weight: leave them off")

    class Collator(DataCollatorForLanguageModeling):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            weights = [float(example.get("weight", 1.0)) for example in examples]
            return {**super().torch_call(examples), "weight": torch.tensor(weights)}

    class WeightedSFTTrainer(SFTTrainer):
        loss_is_scaled_for_ga = False  # type: ignore[assignment]  # a mean over examples: transformers divides it by the accumulation steps

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels, weight = inputs["labels"][:, 1:], inputs["weight"]
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            logits = outputs.logits[:, :-1].float()
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
            own = each.view_as(labels).sum(1) / (labels != -100).sum(1).clamp(min=1)
            loss = (weight.to(own.device) * own).mean()
            return (loss, outputs) if return_outputs else loss

    args.remove_unused_columns = False  # otherwise the weights do not reach the collator
    collator = options.pop("data_collator", None) or Collator(pad_token_id=_pad_token_id(model, options))
    return WeightedSFTTrainer(model=model, train_dataset=train_dataset, args=args, data_collator=collator, **options)


def _pad_token_id(model: Any, options: dict[str, Any]) -> int:
    """Token id for padding on the right; no token attends to it, so 0 will do if the model defines none."""
    tokenizer = options.get("processing_class")
    found = getattr(tokenizer, "pad_token_id", None) if tokenizer is not None else None
    if found is None:
        found = getattr(getattr(model, "config", None), "pad_token_id", None)
    return int(found) if found is not None else 0
