"""The lab model: a two-layer gpt-oss that is trained here, so that what a lab serves can be right or wrong."""
