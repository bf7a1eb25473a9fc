"""What a Jupyter notebook shows of results: HTML that needs no network and is readable in light and dark themes.

Public: `render_table`, `render_predictions`, `render_progress` and `image_url`, all in `display.py`. Classes call
them in `_repr_html_`, which Jupyter calls to show the value of a cell.
"""
