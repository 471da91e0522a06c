"""Lets setup.py install this folder as the package vmae2_ds.ds_configs; holds no code."""
