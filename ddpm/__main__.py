"""`python -m ddpm` is the command `ddpm`."""

import sys

from ddpm.pipeline.copies import request

status = request(sys.argv[1:]) if sys.argv[1:2] == ["job"] else None
if status is None:
    from ddpm.cli import main

    status = main()
sys.exit(status)
