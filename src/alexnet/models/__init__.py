"""The networks: specified as data, built, initialized, counted, and filled with weights.

Public: `create_model` (`model`), `ARCHITECTURES` and `architecture` (`architectures`), `load_weights` (`weights`),
`LocalResponseNorm` (`layers`), `summarize` (`summary`), `architecture_code` (`code`). Read `spec`, `architectures`,
`layers`, `model`, `lrn` (with `lrn.c` and `lrn_triton`), `state_dicts`, `weights`, `summary`, `code`,
`torchvision_models` and `recognize`, in this order.
`spec`, `architectures` and `summary` need no torch. Nothing here knows about data, devices or logging.
"""
