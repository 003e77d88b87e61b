"""The strict records of recipes/ and of fleet.yml."""
