"""When something that a test waits for hangs."""

from __future__ import annotations

#: After these seconds a test stops waiting and fails. No test fails for being slow: the longest wait takes five minutes
#: on an idle machine with two cores, and a machine that is shared can be four times slower.
HANGING_SECONDS = 1500
