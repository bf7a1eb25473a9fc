"""`alexnet bench`: speed on this machine, as a share of its measured limits.

Entry point: `bench.bench`. Also public: `synthetic.synthetic_step` (a training step on random images) and
`timing.time_interleaved` (fair timings on a busy machine). Reading order: timing, limits, synthetic, bench.
"""
