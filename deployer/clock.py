"""The clock for durations that outlive a manager: seconds since boot, time asleep included.

Wall clocks jump; a monotonic clock that the next manager reads as well does not (clock_gettime(2), CLOCK_BOOTTIME).
What is shown to people as a date is `time.time()`.
"""

from __future__ import annotations

import time


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
