"""`alexnet ablate`: the paper's claims as controlled comparisons over several seeds.

Entry points: `ablate.ablate`, `ablate.ablate_all`, `ablate.base_recipe` and `table.claims_table`. Reading order: claims
(what is compared and measured), stats (the rules of the verdict), ablate (the trainings), results (one comparison),
table (all of them, corrected for their number), figure, hog (a baseline without a network).
"""
