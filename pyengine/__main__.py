"""`python -m pyengine` is the command `pyengine`."""

import sys

from pyengine.cli.main import main

sys.exit(main())
