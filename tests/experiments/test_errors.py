"""Errors for people cross from one process to another with their sentence and exit code."""

import pickle

from experiments.cli.errors import MissingPackage, UserError
from experiments.run.folder import RunError


def test_errors_cross_to_another_process() -> None:
    for error in (UserError("a sentence"), RunError("a disk", exit_code=1), MissingPackage("rdkit", "molecules", "sampling")):
        there = pickle.loads(pickle.dumps(error))
        assert isinstance(there, UserError)
        assert (str(there), there.exit_code) == (str(error), error.exit_code)
