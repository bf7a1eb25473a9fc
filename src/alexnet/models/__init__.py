"""The networks: what they are (`spec`, `architectures`), how built (`layers`, `model`), counted and filled (`weights`).

`spec`, `architectures` and `summary` need no torch. Nothing here knows data, devices or logging.
"""
