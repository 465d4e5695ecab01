"""The command lines `pgrl` and `gflownet`: parsing, errors, progress, signals."""
