"""`python -m tests.bad_input > docs/bad_input.md`."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings

import tests.conftest  # noqa: F401  # the environment of the tests
from tests.bad_input.document import answers, document
from tests.bad_input.workshop import workshops

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), workshops() as opened:  # libraries print as they are loaded
        page = document(answers(opened))
    sys.stdout.write(page)
