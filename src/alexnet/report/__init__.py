"""HTML pages about runs and datasets, each one self-contained file.

`report.write_report` (`alexnet report RUN`), `compare.write_comparison` (several runs), and `check_page.write_page`
(`alexnet check --html`). Read `run_data`, `html`, `report`, then its sections `recommendations`, `confusion`,
`calibration`, `provenance` and `thumbnails`; `compare` and `check_page` stand alone. Texts come from `messages`,
figures from `plots`.
"""
