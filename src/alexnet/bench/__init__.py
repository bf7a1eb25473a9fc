"""`alexnet bench`: speed on this machine, as a share of its measured limits.

Entry point: `bench.bench`. Also public: `synthetic.synthetic_step` (a training step on random images) and
`timing.time_interleaved` (fair timings on a busy machine). Reading order: timing, peaks (the limits), synthetic,
memory, engines, roofline, suites (what is measured), bench.
"""
