"""Files, Ray, configuration and people: the stages that turn images into an atlas."""
