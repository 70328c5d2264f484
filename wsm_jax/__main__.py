"""``python -m wsm_jax VERB`` is ``wsm VERB``."""

import sys

from wsm_jax.cli import main

sys.exit(main())
