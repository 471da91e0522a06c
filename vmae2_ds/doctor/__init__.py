"""`vmae2 doctor`: what a machine has and lacks for a recipe, a line each, with a remedy beside what is missing."""
