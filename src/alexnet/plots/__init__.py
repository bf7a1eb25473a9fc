"""Every figure of reports and of `alexnet show`, drawn with matplotlib.

`show.show` writes one figure of a run, a network or images to a file; `style` renders any figure in a light and a dark
theme, as PNG, SVG or HTML. Read `style`, `metrics`, `architecture`, `model`, and last `kinds` and `show`, which
tie them to the command line.
"""
