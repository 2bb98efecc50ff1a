"""The model of a run with its adapter: loading and releasing it, an example as its tokens, the token budget of a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tagcos_stream.config import Settings
from tagcos_stream.gradients.chat import Encoded, NoTargets, SpecialTokens, encode
from tagcos_stream.machine import free_memory
from tagcos_stream.memory import GIB
from tagcos_stream.paths import expanded, is_hub_id
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from storage.catalog.spaces import Space
    from tagcos_stream.gradients.model import LoadedModel

TOO_LONG = "too long"
CPU_TOKENS, GPU_TOKENS = 1024, 8192  # a pass, where the settings do not say


class AdaptedModel:
    """A model with its adapter that is loaded when it is first needed and stays loaded until it is closed.

    A run has one, so that the warm-up and the gradients load the model once. As a context manager it closes itself.
    """

    def __init__(self) -> None:
        self._loaded: tuple[Settings, str, LoadedModel] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._loaded is not None

    def load(self, settings: Settings, device: str) -> LoadedModel:
        """The model of these settings on this device, loaded unless it is already. UserError as for `load_adapted`."""
        if self._loaded is None or self._loaded[:2] != (settings, device):
            self.close()  # before the other is loaded: there may be no room for both
            self._loaded = (settings, device, load_adapted(settings, device))
        return self._loaded[2]

    def close(self) -> None:
        """Release the model's memory, as far as nothing else holds the model."""
        device = "" if self._loaded is None else self._loaded[2].device
        self._loaded = None
        if device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()  # for the processes that load their own

    def __enter__(self) -> AdaptedModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextmanager
def borrowed_model(model: AdaptedModel | None) -> Iterator[AdaptedModel]:
    """Give a worker the model of its run, which stays loaded, or where it has none a model that is closed at the end."""
    if model is not None:
        yield model
        return
    with AdaptedModel() as own:
        yield own


def check_model(settings: Settings) -> None:
    """Refuse a model that is not there, before anything is read. A hub id is only checked when it is loaded.

    Parameters
    ----------
    settings
        Those of a run that needs its model.

    Raises
    ------
    UserError
        No model is given, or there is no such file or folder.
    """
    model = settings.model
    if not model:
        raise UserError("no model given: add --model with a Hugging Face id, a model folder or a .gguf file")
    if not is_hub_id(model) and not expanded(model).exists():
        raise UserError(f"model {model}: no such folder or file; give a Hugging Face id, a model folder or a .gguf file")


def check_device(settings: Settings) -> None:
    """Refuse a device that torch does not have, before anything is read. UserError names it."""
    if settings.device not in ("auto", "cpu"):
        from tagcos_stream.gradients import model  # torch takes seconds to import

        model.check_device(settings.device)


def load_adapted(settings: Settings, device: str) -> LoadedModel:
    """The model of these settings, with its adapter attached. UserError if there is none, or none can be loaded."""
    from transformers.utils import logging

    from tagcos_stream.gradients.adapter import attach_adapter, attach_from_checkpoint
    from tagcos_stream.gradients.model import load_model

    check_model(settings)
    logging.disable_progress_bar()  # ours tell enough
    loaded = load_model(
        settings.model,
        device=device,
        dtype=settings.dtype,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        quantize=settings.quantize,
    )
    if settings.adapter:
        loaded.model = attach_from_checkpoint(loaded.model, settings.adapter)
    else:
        loaded.model = attach_adapter(
            loaded.model,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            target_modules=list(settings.lora_targets) or "auto",
            rank_pattern=settings.rank_pattern(),
            rslora=settings.rslora,
            seed=settings.feature_seed,
        )
    return loaded


def load_of_space(model: AdaptedModel, settings: Settings, device: str, space: Space) -> LoadedModel:
    """Load the model of these settings, and refuse one whose content is not that of a feature space's model.

    Where the settings leave the dtype to the device, it is that of the space, which another device may have begun.

    Raises
    ------
    UserError
        As for `load_adapted`, or the content is another.
    """
    loaded = model.load(settings, device)
    begun = space.fingerprint.get("dtype", loaded.dtype)
    if settings.dtype == "auto" and loaded.dtype != begun:
        loaded = model.load(settings.model_copy(update={"dtype": begun}), device)
    if space.fingerprint["model"] != loaded.fingerprint:
        raise UserError(
            f"model {settings.model} has content {loaded.fingerprint}, but feature space {space.space_id} was made with "
            f"{space.fingerprint['model']}: features of two models never mix; restore it, or give the new one another path"
        )
    return loaded


def max_length(settings: Settings, loaded: LoadedModel) -> int:
    """Tokens that an example is limited to: the setting, or the model's own maximum where that is less."""
    return min(settings.max_length, loaded.max_positions)


@dataclass(frozen=True)
class Rejected:
    """An example that cannot be computed, and why."""

    reason: str
    detail: str | None


def encode_row(
    tokenizer: Any, row: Mapping[str, Any], longest: int, reject_long: bool, special_tokens: SpecialTokens = "keep"
) -> Encoded | Rejected:
    """The example as tokens, or why not."""
    if not row["messages"]:
        return Rejected("forgotten", "its text was erased")
    try:
        encoded = encode(
            tokenizer,
            row["messages"],
            max_length=longest,
            tools=row["tools"],
            template_kwargs=row.get("template_kwargs"),
            special_tokens=special_tokens,
        )
    except NoTargets as error:
        return Rejected(error.reason, str(error))
    if encoded.truncated and reject_long:
        return Rejected(TOO_LONG, f"more than {longest} tokens")
    return encoded


def none_encoded(tried: Sequence[tuple[str, Rejected]], settings: Settings) -> UserError:
    """Why not one of the examples (id, why not) that were drawn can be trained on: the most frequent reason, with an example."""
    (reason, count), *_ = Counter(rejected.reason for _, rejected in tried).most_common(1)
    example_id, first = next((example_id, rejected) for example_id, rejected in tried if rejected.reason == reason)
    remedy = (
        f": raise --max-length (now {settings.max_length}), or check that answers are in assistant turns"
        if reason in (NoTargets.reason, TOO_LONG)
        else ""
    )
    return UserError(
        f"none of {len(tried)} examples drawn can be trained on; {reason} ({count} of them), such as {example_id}: "
        f"{first.detail}{remedy}"
    )


def gradient_token_budget(settings: Settings, loaded: LoadedModel, variants: int, checkpoints: int, processes: int = 1) -> int:
    """The token budget of the gradient stage; UserError if it does not fit in memory."""
    from tagcos_stream.gradients.memory import model_shape, peak_bytes

    shape = model_shape(loaded.model)
    held = {"variants": variants, "checkpoints": checkpoints, "block_rows": settings.block_rows, "dim": settings.dim}

    def need(tokens: int) -> int:
        return peak_bytes(shape, token_budget=tokens, max_length=max_length(settings, loaded), **held) - shape.weight_bytes

    return token_budget(settings, loaded, "the gradient stage", need, processes)


def token_budget(settings: Settings, loaded: LoadedModel, stage: str, need: Callable[[int], int], processes: int = 1) -> int:
    """Return the token budget of a stage that needs need(budget) bytes in addition to the model, which `processes` run at a time.

    On a CPU it does not depend on the memory found, because a batch's size shows in the last bits of its features;
    on a GPU, where they repeat to rounding only, it is halved until the stage fits.

    Raises
    ------
    UserError
        The stage does not fit; with both sizes and what to lower.
    """
    room, what = _room(settings, loaded, processes)
    on_gpu = loaded.device.startswith("cuda")
    budget = settings.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS)
    while settings.batch_tokens is None and on_gpu and budget > settings.max_length and need(budget) > room:
        budget //= 2
    if need(budget) > room:
        cut = "batch_tokens or max_length" if budget > settings.max_length else "max_length"
        raise UserError(
            f"{stage} of {settings.model} needs {need(budget) / GIB:.1f} GiB in addition to the model, in passes of "
            f"{max(budget, settings.max_length)} tokens; {what}: lower {cut}, or lora_rank, or give it more memory"
        )
    return budget


def workers_on_gpu(settings: Settings, processes: int, gpus: int) -> int:
    """Return how many workers share a GPU.

    Parameters
    ----------
    settings
        With run_on, device and gpus_per_worker.
    processes
        Workers on this machine.
    gpus
        GPUs that this process sees. Ray shows each worker its own only.

    Returns
    -------
    int
        1 or more.
    """
    if settings.gpus_per_worker:
        return max(1, int(1 / settings.gpus_per_worker))
    spread = settings.device in ("auto", "cuda") and settings.run_on != "ray"  # as in devices_of
    return -(-processes // max(1, gpus)) if spread else processes


def _room(settings: Settings, loaded: LoadedModel, processes: int) -> tuple[int, str]:
    """(bytes that a process may use in addition to its model, where they come from)."""
    if loaded.device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(loaded.device)
        used = torch.cuda.memory_allocated(loaded.device)
        free += torch.cuda.memory_reserved(loaded.device) - used
        sharers = workers_on_gpu(settings, processes, torch.cuda.device_count())
        if sharers == 1:
            return free, f"{loaded.device} has {free / GIB:.1f} GiB free"
        # others may have yet to load their model, or have taken memory already: a share of the whole, not of what is free now
        room = min(free, total // sharers - used)
        return room, f"{loaded.device} has {max(0, room) / GIB:.1f} GiB for each of {sharers} processes, in addition to the model"
    if settings.memory_limit is not None:
        weights = sum(t.numel() * t.element_size() for t in (*loaded.model.parameters(), *loaded.model.buffers()))
        room = int(settings.memory_limit * GIB / processes) - weights
        share = f" for {processes} processes" if processes > 1 else ""
        return (
            room,
            f"memory_limit {settings.memory_limit:g} GiB{share} leaves {max(0, room) / GIB:.1f} GiB after the weights",
        )
    free = free_memory()
    return free // processes, f"{free / GIB:.1f} GiB are free" + (f" for {processes} processes" if processes > 1 else "")
