"""Training Pic2Word's mapping network (Saito et al. 2023): `tercet-train pic2word`.

`recipe` says how much and how fast, `sources` where pictures come from, `batches` in which order they are
seen, `frozen` what CLIP makes of them, `world` how processes share the work, `saving` what a checkpoint
holds; `train` is the loop and `command` its command line.
"""
