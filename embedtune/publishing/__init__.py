"""Models on the Hub: the files, the card with its evidence, and the check that what arrived is what was sent."""
