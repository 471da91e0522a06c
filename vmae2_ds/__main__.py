"""`python -m vmae2_ds` and `deepspeed --module vmae2_ds` are the console script `vmae2`."""

from vmae2_ds.cli.main import main

if __name__ == "__main__":
    main()
