"""Dataset checks before training, for `alexnet check`: unreadable files, duplicates, leakage, imbalance.

Public: `check_dataset` and `check_packed` (`check`), `Findings` (`findings`), `write_cleaned` (`clean`). Read `inspect`
(one image), `duplicates` (all images), `findings` (results and their judgement), `check` and `clean`, in this order.
Data is only read; `clean` writes a cleaned copy elsewhere.
"""
