"""The texts of pages and figures and of what a training shows, in English and Chinese.

`en.json` and `zh.json` map the same keys to texts with the same placeholders; keys are grouped by section of the page.
In `translator`, `Translator` formats the texts of a language and `load_template` gives them to a page.
"""
