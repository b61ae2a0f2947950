"""The daemon: policy. Carries events to the pure core and its effects to the world. Uses all rooms below it."""
