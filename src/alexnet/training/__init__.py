"""Training: from a recipe to a run folder that can be resumed bit for bit.

Public: `api.train`, `api.resume`, `recipe.Recipe`, `optim.SGD2012`.

Read in this order: `recipe` (all settings; parsed by `config_parsing`), `recipes` (those that ship),
`auto_config` and `manual_schedule` (settings chosen by the data, and by epoch), `setup` (data and choices),
`transfer` (pretrained weights), `optim` (SGD and schedules), `step` and `trainer` (the loop), `checkpoints`,
`resume`, `api`; then `distributed/`, and `diagnostics`, `signals` and `time_budget`.
"""
