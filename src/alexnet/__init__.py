"""Every AlexNet, verified."""
