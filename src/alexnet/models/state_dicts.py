"""Find the network's tensors in a checkpoint that another program saved, under plain names.

Programs nest the state dict beside optimizer, epoch and averaged copies, and their wrappers
(DataParallel, torch.compile, Lightning, a class of one's own) put a prefix before its names or a
component inside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import UserError

_NAMES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "net_state_dict", "network", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
"""Usual names of a state dict in a checkpoint: of several that are there the first is taken, so averages come last."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Name components that DataParallel, torch.compile, FSDP and activation checkpointing add, also inside a name."""

_TRAINING_ONLY = re.compile(r"n_averaged|\w*(criterion|loss|metric|accuracy)\w*\..+|(train|val|valid|test)_\w+\..+")
"""Names of what trains or measures a network: the counter of `AveragedModel`, class weights of a loss, metrics."""

_COUNTER = "num_batches_tracked"
"""Of batch norm: of no use at a fixed momentum, and absent from files before torch 0.4.1."""


def find_state_dict(
    checkpoint: Mapping[str, Any], where: str = "the weights", log: Callable[[str], object] = lambda _: None
) -> dict[str, Tensor]:
    """Return the state dict in `checkpoint`, without the prefixes that are common to all names.

    Values may be arrays. `log` receives a sentence on which of several state dicts it is, and on
    tensors that are left out. Raises `UserError`, which calls the checkpoint `where`, if there is
    none or more than one and their names do not tell which to take.
    """
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise UserError(f"Weights are a state dict or a path, not a {kind}; give model.state_dict().")
    found = _find_nested(checkpoint, "", set())
    if len(found) > 1:
        known = [name for usual in _NAMES for name in found if name.rpartition(".")[2] == usual]
        if not known:
            names = ", ".join(f"'{name}'" for name in found)
            raise UserError(f"There are several networks in {where}: {names}; save the state dict of one by itself.")
        others = ", ".join(f"'{name}'" for name in found if name != known[0])
        log(f"Of {where} the weights in '{known[0]}' are taken, and not those in {others}.")
        found = {known[0]: found[known[0]]}
    values = next(iter(found.values())) if found else checkpoint
    for name in () if found else _NAMES:  # an empty state dict
        if isinstance(checkpoint.get(name), Mapping):
            values = checkpoint[name]
    tensors = {str(key): _to_tensor(key, value, where) for key, value in values.items()}
    if all(map(is_counter, tensors)):
        raise UserError(f"There are no tensors in {where}; save model.state_dict() again.")
    unwrapped = {".".join(p for p in key.split(".") if p not in _WRAPPERS): t for key, t in tensors.items()}
    plain = _without_prefix(unwrapped)
    kept = {name: t for name, t in plain.items() if t.dim() > 1 or not _TRAINING_ONLY.fullmatch(name)}
    if left_out := [name for name in plain if name not in kept]:
        names = ", ".join(f"'{name}'" for name in left_out)
        log(f"In {where}, {names} belongs to the training and not to the network, and is left out.")
        kept = _without_prefix(kept)
    if len(plain) != len(tensors):
        raise UserError(
            f"In {where}, some names differ only in wrappers such as 'module.'; save one network by itself."
        )
    return kept


def is_counter(name: str) -> bool:
    """Whether `name` is the number of batches that a batch norm has seen."""
    return name.rpartition(".")[2] == _COUNTER


def _find_nested(values: Mapping[str, Any], name: str, seen: set[int]) -> dict[str, Mapping[str, Any]]:
    """Return the innermost mappings with a matrix or filter, by their path such as "ema.model"; no optimizer's."""
    if id(values) in seen or "param_groups" in values or name.count(".") > 3:
        return {}
    seen.add(id(values))  # a pickle may refer to itself
    nested: dict[str, Mapping[str, Any]] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(key, str):
            nested |= _find_nested(value, f"{name}.{key}" if name else key, seen)
    has_matrix = any(isinstance(value, (Tensor, np.ndarray)) and value.ndim > 1 for value in values.values())
    return nested or ({name: values} if has_matrix else {})


def _to_tensor(key: object, value: object, where: str) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise UserError(f"In {where}, '{key}' is no tensor; give model.state_dict().")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"In {where}, '{key}' is sparse, quantized or without values; save plain tensors.")
    return value


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the first components of the names as long as all share them; a module and its tensor always remain."""
    while all(name.count(".") > 1 for name in state) and len({name.split(".", 1)[0] for name in state}) == 1:
        state = {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
    return state
