"""What a configuration will cost before it runs: calculators, the planner, and the tuner that searches for a better one."""
