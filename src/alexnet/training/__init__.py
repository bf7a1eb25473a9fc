"""Training: from a recipe to a run folder that can be resumed bit for bit.

Public: `api.train`, `api.resume`, `recipe.Recipe`, `optim.SGD2012`.

Read in this order: `settings` (every setting) and `recipe` (all of them together, and those chosen by the data),
`recipes` (those that ship), `architecture` (the network), `setup` (data and choices), `transfer` (pretrained weights),
`optim` (SGD and schedules), `muon`, `step` and `trainer` (the loop), `checkpoints`, `resume`, `api`; then
`distributed/`, `diagnostics`, `speed`, `threads` and `time_budget`.
"""
