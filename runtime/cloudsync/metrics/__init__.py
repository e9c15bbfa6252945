"""What the platform says about itself: one registry of metrics, counted in place, sent once a second."""
