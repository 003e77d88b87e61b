"""The browser of tests that open a page."""

from __future__ import annotations

import shutil

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
#: What a browser does beside showing a page, and a test does not need.
LEFT_OUT = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-gpu")
