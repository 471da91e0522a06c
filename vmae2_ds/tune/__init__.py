"""What a configuration will cost before it runs: calculators, the forecast, and the tuner that searches for a better one."""
