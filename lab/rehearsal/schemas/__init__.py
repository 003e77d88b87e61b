"""What the providers themselves say of the resources that the stacks make, locked as data."""
