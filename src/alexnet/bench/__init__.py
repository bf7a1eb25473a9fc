"""`alexnet bench`: speed on this machine, as a share of its measured limits.

Entry point: `bench.bench`. Also public: `bench.synthetic_step` (a training step on random images) and
`limits.time_interleaved` (fair timings on a busy machine). Read `limits`, then `bench`.
"""
