"""Weight files of every known layout: names of keys, reading, writing, and what a file says of its model."""
