"""What is needed to try things without Arm hardware."""
