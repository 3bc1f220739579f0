"""One file a command: what it asks the cluster, and in which order; what it shows is drawn in `draw`."""
