"""A network that sees whether a mouth is covered (`model.portrait.occlusion`)."""
