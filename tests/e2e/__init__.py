"""A package, so that the lab of these tests is gone once the last of them has ended (pytest's scope ``package``)."""
