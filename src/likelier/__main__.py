"""`python -m likelier`, which is also what torchrun starts."""

import sys

from likelier.cli import main

sys.exit(main())
