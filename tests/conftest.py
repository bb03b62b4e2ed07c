"""What holds for every test.

* Hypothesis has no deadline: the machine that runs the tests may be slow or busy, and a slow example is not a wrong one.
* Variables of a developer's own gateway or client do not reach the tests, nor the processes that they start.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

for _name in [name for name in os.environ if name.startswith("AETHER_")]:
    del os.environ[_name]
