"""Makes this folder importable as vmae2_ds.ds_configs, so that the policies are found from a wheel too; holds no code."""
