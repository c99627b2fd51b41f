"""`python -m dosde`: the command line."""

from backbones.cli import main

raise SystemExit(main())
