"""Seconds that bergson or dattri take for projected per-sample LoRA gradients; run by bench_gradients in the peers' own
environment.

    python peers_gradients.py PEER MODEL_FOLDER EXAMPLES.npz RANK THREADS CLOCK

prints `ready`, then for every line it is sent the seconds of one more pass. Both project each adapter matrix on two sides to
6 x 6 (about 8,192 features over 240 matrices), which is the cheapest thing that they offer, and for bergson with Adam's second
moments (it knows no momentum; dattri knows neither).
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch

SIDE = 6
clock = time.perf_counter


def adapted(folder: str, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def bergson_seconds(model: Any, examples: list[tuple[np.ndarray, np.ndarray]], batches: list[list[int]]) -> float:
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import AdamNormalizer, GradientProcessor
    from datasets import Dataset

    rows = {
        "input_ids": [ids.tolist() for ids, _ in examples],
        "labels": [np.where(target, ids, -100).tolist() for ids, target in examples],
        "length": [len(ids) for ids, _ in examples],
    }
    layers = {n: m for n, m in model.base_model.named_modules() if ".lora_" in n and isinstance(m, torch.nn.Linear)}
    normalizers = {name: AdamNormalizer(torch.full_like(layer.weight, 1e-8)) for name, layer in layers.items()}
    processor = GradientProcessor(normalizers=normalizers, projection_dim=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=folder, projection_dim=SIDE, loss_reduction="mean")
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        data = Dataset.from_dict(rows)
        collector = InMemoryCollector(
            model=model.base_model, cfg=config, processor=processor, target_modules=set(layers), data=data
        )
        computer = CollectorComputer(model=model, data=data, collector=collector, batches=batches, cfg=config)
        started = clock()
        computer.run_with_collector_hooks()
        return clock() - started


def dattri_seconds(model: Any, examples: list[tuple[np.ndarray, np.ndarray]], batches: list[list[int]]) -> float:
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    def padded(batch: list[int]) -> dict[str, torch.Tensor]:
        shape = (len(batch), max(len(examples[i][0]) for i in batch))
        out = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.zeros(shape, dtype=torch.long)}
        out["labels"] = torch.full(shape, -100)
        for row, i in enumerate(batch):
            ids, target = (torch.from_numpy(part) for part in examples[i])
            out["input_ids"][row, : len(ids)], out["attention_mask"][row, : len(ids)] = ids.long(), 1
            out["labels"][row, : len(ids)] = torch.where(target, ids.long(), -100)
        return out

    class Batches:
        """What dattri asks of a DataLoader; the batches themselves are ours, for a DataLoader knows no token budget."""

        batch_size, dataset, sampler = max(map(len, batches)), examples, range(len(examples))

        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Any:
            return map(padded, batches)

    def loss(model: Any, batch: dict[str, torch.Tensor], device: str) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none"
        ).view_as(labels)
        return (each.sum(1) / (labels != -100).sum(1)).sum()

    names = [name for name, module in model.named_modules() if ".lora_" in name and isinstance(module, torch.nn.Linear)]
    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = LoGraAttributor(task=task, layer_names=names, hessian="Identity", proj_dim=SIDE * SIDE, offload="none")
    loader = Batches()
    attributor._setup_compressors(loader)
    started = clock()
    attributor.cache(loader)
    return clock() - started


def main() -> None:
    peer, folder, file, rank, threads, wanted = sys.argv[1:]
    logging.disable(logging.INFO)
    torch.set_num_threads(int(threads))
    global clock
    clock = time.process_time if wanted == "cpu" else time.perf_counter
    stored = np.load(file)
    cuts = np.cumsum(stored["lengths"])[:-1]
    examples = list(zip(np.split(stored["ids"], cuts), np.split(stored["targets"], cuts), strict=True))
    batches = [part.tolist() for part in np.split(stored["order"], np.cumsum(stored["batch_rows"])[:-1])]
    model = adapted(folder, int(rank))
    run = {"bergson": bergson_seconds, "dattri": dattri_seconds}[peer]
    run(model, examples, batches[-1:])
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = run(model, examples, batches)
        print(f"\nseconds {seconds}", flush=True)


if __name__ == "__main__":
    main()
