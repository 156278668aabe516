"""Training: the LightningModule, what a run is made of, and its course to the last checkpoint."""
