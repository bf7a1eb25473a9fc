"""`alexnet ablate`: the paper's claims as controlled comparisons over several seeds.

Entry points: `ablate.ablate` and `ablate.base_recipe`; `claims.CLAIMS` is the table of claims. Reading order: claims
(what is compared), ablate (trainings, statistics, a baseline without a network, plot).
"""
