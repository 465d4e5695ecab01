"""Everything that touches the disk, the clock or the terminal."""
