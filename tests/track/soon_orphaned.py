"""The process behind a tracker, which waits a tenth of a second where it would wait a minute for a run that was killed."""

from vmae2_ds.track import child

if __name__ == "__main__":
    child.ORPHAN_S = 0.1
    child.main()
