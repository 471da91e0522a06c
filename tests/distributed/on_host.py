"""A rank as if it ran on another host: `python -m tests.distributed.on_host NAME FOLDER WORDS` starts vmae2 from FOLDER."""

import os
import platform
import sys

from vmae2_ds.cli.main import main

if __name__ == "__main__":
    _, name, folder, *words = sys.argv
    os.chdir(folder)
    platform.node = lambda: name
    main(words)
