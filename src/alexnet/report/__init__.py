"""HTML pages about runs and datasets, each one self-contained file.

`report.write_report` (`alexnet report RUN`), `compare.write_comparison` (several runs), and `check_page.write_page`
(`alexnet check --html`). Read `run_data`, `page`, `report`, `recommendations`, `compare` and `check_page`. The HTML is
in templates/, texts come from `messages`, figures from `plots`.
"""
