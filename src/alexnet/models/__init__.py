"""The networks: specified as data, built, initialized, counted, and filled with weights.

Public: `create_model` (`model`), `ARCHITECTURES` and `architecture` (`architectures`), `load_weights` (`weights`),
`LocalResponseNorm` (`layers`), `summarize` (`summary`), `architecture_code` (`code`). Read `spec`, `architectures`,
`layers`, `model`, `lrn` (with `lrn.c` and `lrn_triton`), `state_dicts`, `weights`, `summary`, `code`,
`torchvision_models` and `recognize`, in this order.
`spec`, `architectures` and `summary` need no torch. Nothing here knows about data, devices or logging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.models.summary import ArchitectureTable, Summary
    from alexnet.models.torchvision_models import TorchvisionSummary


def describe(name: str | None, **settings: Any) -> ArchitectureTable | Summary | TorchvisionSummary:
    """Return the table of all architectures, or the layers of `name` with the given settings of `create_model`.

    Imports torch for a torchvision name only. Raises `UserError`.
    """
    from alexnet.models.architectures import TORCHVISION, architecture
    from alexnet.models.summary import summarize, table

    if name is None:
        return table()
    if not name.startswith(TORCHVISION):
        return summarize(architecture(name, **settings))
    from alexnet.models.torchvision_models import summarize_torchvision, torchvision_spec

    return summarize_torchvision(torchvision_spec(name, **settings))
