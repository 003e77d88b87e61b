"""What one host gets: files, packages, engine, driver, image, HAProxy, and its manifest."""
